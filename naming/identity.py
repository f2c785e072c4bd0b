"""What a model id such as `meta-llama/Llama-3.1-8B-Instruct` says: basename, size, fine-tune, version.

The same answers as llama.cpp's gguf-py/gguf/metadata.py (get_model_id_components, id_to_title) and utility.py
(size_label), because they become `general.*` keys that people compare and search for.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path


@dataclass(frozen=True)
class Parameters:
    """Weights of a model.

    total:        of all tensors.
    shared:       outside the experts.
    expert:       of one expert in all layers.
    expert_count: experts per layer, 0 for a dense model.
    """

    total: int = 0
    shared: int = 0
    expert: int = 0
    expert_count: int = 0

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, Sequence[int]]]) -> "Parameters":
        """Counted from GGUF tensor names and shapes (slowest axis first); experts are the stacked `_exps.` tensors."""
        total = shared = expert = 0
        counts = []
        for name, shape in tensors:
            size = math.prod(shape)
            total += size
            if "_exps." in name and len(shape) >= 3:
                counts.append(shape[-2 if ".bias" in name else -3])
                expert += size // counts[-1]
            else:
                shared += size
        return cls(total, shared, expert, sum(counts) // len(counts) if counts else 0)

    @property
    def size_label(self) -> str:
        """`7.6B`, or `8x7.2B` for experts."""
        if self.expert_count:
            return f"{self.expert_count}x{rounded(self.shared + self.expert)}"
        return rounded(self.total)


def rounded(count: int) -> str:
    """At least two digits and a letter: 1.1B, 494M, 13K."""
    letter, scale = next(((letter, scale) for letter, scale in _SCALES if count * scale > 1), _SCALES[-1])
    scaled = count * scale
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{letter}"


_SCALES = (("T", 1e-12), ("B", 1e-9), ("M", 1e-6), ("K", 1e-3))


@dataclass(frozen=True)
class Identity:
    """The components of a model id; None where it says nothing."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


class PartKind(Enum):
    """What a part of a model name means."""

    WORD = auto()
    VERSION = auto()
    ENCODING = auto()
    SIZE = auto()
    FINETUNE = auto()


# The first rule that matches a whole part decides; a part at the front of a name is never a size or a fine-tune.
_ANYWHERE = (
    (PartKind.VERSION, re.compile(r"(v|iter)?\d+(\.\d+)*", re.IGNORECASE)),
    (PartKind.ENCODING, re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)),
)
_INSIDE = (
    (PartKind.SIZE, re.compile(r"(a|\d+x)?\d+([._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl", re.IGNORECASE)),
    (PartKind.FINETUNE, re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)),
)


@dataclass(frozen=True)
class _Part:
    text: str
    kind: PartKind


def identify(model_id: str, total: int = 0) -> Identity:
    """The components of a model id or folder name.

    total: weights of the model if known; a size far from it is a context length (Phi-3-mini-4k), not a size.
    """
    if " " in model_id:  # a sentence, not an id
        return Identity(name=model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    parts = [_part(text, index, total) for index, text in enumerate(filter(None, name.split("-")))]
    if any(character.isdecimal() for part in parts if part.kind is PartKind.SIZE for character in part.text):
        # Beside a size in numbers, "mini" and "large" are words of the name.
        parts = [_Part(p.text, PartKind.WORD) if p.kind is PartKind.SIZE and p.text.isalpha() else p for p in parts]

    front = 0  # the basename: leading words, and the versions among them
    while front < len(parts) and _continues_basename(parts[front]):
        front += 1
    if front == len(parts):
        while front and parts[front - 1].kind is PartKind.VERSION:
            front -= 1
    basename, rest = parts[:front], parts[front:]
    size = _joined(rest, PartKind.SIZE)
    finetune = _joined(rest, PartKind.FINETUNE, PartKind.WORD)
    version = _joined(rest, PartKind.VERSION)
    certain = size or finetune or version
    return Identity(
        name=name,
        organization=organization if slash and not organization.startswith(".") else None,
        basename="-".join(part.text for part in basename) or None if certain else None,
        finetune=finetune,
        version=version,
        size_label="-".join(dict.fromkeys(size.split("-"))) if size else None,
    )


def hub_id(folder: Path) -> str:
    """ORG/NAME of a model folder in a hub's cache; empty for any other.

    Hugging Face: models--ORG--NAME/snapshots/REVISION; ModelScope: models/ORG--NAME/snapshots/REVISION.
    """
    snapshots, cached = folder.parent, folder.parent.parent
    name = f"models--{cached.name}" if cached.parent.name == "models" else cached.name
    if snapshots.name != "snapshots" or not name.startswith("models--"):
        return ""
    return name.removeprefix("models--").replace("--", "/", 1)


def model_folder_name(folder: Path) -> str:
    """The model's name as its folder gives it."""
    return hub_id(folder).rpartition("/")[2] or (folder.name if folder.name.strip() else "model")


def title(model_id: str) -> str:
    """`TinyLlama-1.1B-chat-v1.0` -> `TinyLlama 1.1B Chat v1.0`."""
    words = model_id.replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _NUMBERED.match(word) else word for word in words)


_NUMBERED = re.compile(r"(v\d+(\.\d+)*|\d.*)$")


def _continues_basename(part: _Part) -> bool:
    return part.kind is PartKind.VERSION or (part.kind is PartKind.WORD and part.text[0].isalpha())


def _joined(parts: Sequence[_Part], *kinds: PartKind) -> str | None:
    return "-".join(part.text for part in parts if part.kind in kinds) or None


def _part(text: str, index: int, total: int) -> _Part:
    rules = _ANYWHERE + _INSIDE if index else _ANYWHERE
    kind = next((kind for kind, pattern in rules if pattern.fullmatch(text)), PartKind.WORD)
    if kind is PartKind.ENCODING:
        return _Part(text.upper(), kind)
    return _size(text, total) if kind is PartKind.SIZE else _Part(text, kind)


def _size(text: str, total: int) -> _Part:
    """A size with its letter in capitals, or the fine-tune word that a context length is."""
    text = text.replace("_", ".")
    if text[-1].isdecimal():  # bloom-7b1
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    if not text[-2].isdecimal():  # a word
        return _Part(text, PartKind.SIZE)
    count, letter = text[:-1], text[-1].upper()
    if total and re.fullmatch(r"\d+(\.\d+)?", count):
        weights = float(count) * 1000 ** " KMBT".find(letter)
        if abs(weights - total) > 7 * total // 8:
            return _Part(count + letter.lower(), PartKind.FINETUNE)
    return _Part(count + letter, PartKind.SIZE)
