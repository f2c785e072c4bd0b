"""What a model card says, as data: of the files' headers, and of who publishes them.

Hugging Face hub documentation, "Model Cards", "GGUF" and "Tasks". A card template of one's own is given these records.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal
from urllib.parse import quote

from gguf.constants import GGUFType, Keys

from ggufsmith.container.drafts import NAMES as DRAFTS
from ggufsmith.container.drafts import drafting_kind
from ggufsmith.container.encoders import is_encoder, ranks
from ggufsmith.container.errors import Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.text import size
from ggufsmith.container.values import Metadata
from ggufsmith.naming.local import holds_path, is_id, is_local, is_path
from ggufsmith.naming.prompts import prompt_format
from ggufsmith.naming.uses import use_of

General = Keys.General
HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?$", re.ASCII)
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
IMATRIX = "quantize.imatrix."
SENSED = {frozenset(("images",)): "image-text-to-text", frozenset(("sound",)): "audio-text-to-text"}
TASKS = ("text-generation", "feature-extraction", "sentence-similarity", "fill-mask", "text-ranking")
Kind = Literal["chat", "completion", "embedding", "reranking", "draft", "adapter", "vocabulary"]


@dataclass(frozen=True)
class CardFile:
    """One model of the folder.

    names:    of its file, or of its shards in order.
    size:     bytes of all of them. bits: per weight, of what the file holds.
    encoding: such as Q4_K_M; None if the header does not say.
    hashes:   SHA-256 of each file, or nothing.
    main:     the type that most weights have. unfit: the share of weights in rows that do not fit the encoding.
    imatrix:  the data set of its importance matrix, and how many chunks of it; None without one.
    by:       who quantized it (general.quantized_by).
    senses:   of a projector, what it is for: "images", "sound". Empty for a model.
    """

    names: tuple[str, ...]
    size: int
    bits: float
    encoding: str | None = None
    hashes: tuple[str, ...] = ()
    main: str | None = None
    unfit: float = 0.0
    imatrix: tuple[str | None, int | None] | None = None
    by: str | None = None
    senses: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """Where its first file lies in a repository: shards have a folder of their own, as publishers do it."""
        return f"{self.folder}/{self.names[0].rpartition('/')[2]}" if self.folder else self.names[0]

    @property
    def folder(self) -> str:
        """The folder of its shards in a repository; empty for a single file."""
        return SHARD.sub("", self.names[0]) if len(self.names) > 1 else ""

    @property
    def size_text(self) -> str:
        """Its size, such as 4.30 GB."""
        return size(self.size)

    @property
    def use(self) -> str:
        """What it is good for, by the types that it really has."""
        if self.senses:
            return f"For {' and '.join(self.senses)}, with any of the models"
        if self.unfit <= 0.01 or not self.encoding:
            return use_of(self.encoding)
        real = self.main if self.unfit > 0.5 else self.encoding
        said = f"{use_of(real)}. " if use_of(real) else ""
        return f"{said}{100 * self.unfit:.0f} % of its weights do not fit {self.encoding} and have larger types"


REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Publisher:
    """What no header knows: where the files will lie, what they were made from, and by whom.

    Usage: a base model that is a path, not a name; a repository that no hub could have.
    """

    repo: str | None = None
    base_model: str | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        if self.base_model is not None and not is_id(self.base_model):
            raise Usage(
                f"the base model {self.base_model!r} is not a model on the hub",
                fix="Write it as org/name, or leave it out.",
            )
        if self.repo is not None and not REPOSITORY.fullmatch(self.repo):
            raise Usage(
                f"{self.repo!r:.100} cannot be the name of a repository",
                fix="Write it as org/name, of letters, digits, dots, hyphens and underscores, or leave it out.",
            )


@dataclass(frozen=True)
class CardFacts:
    """What the card of a folder says.

    kind:   what the files are: chat, completion (no chat template), embedding, draft, adapter, or vocabulary.
    drafts: how a draft does it, as llama-server's option --spec-type calls it.
    title:  of the page. name: of the model, as its header has it.
    front:  the front matter, as data.
    prompt: the name of the prompt format and its text; None if it is not known. template: the chat template's source.
    files:  the smallest first.
    """

    kind: Kind
    title: str
    name: str | None
    base_model: str | None
    repo: str | None
    author: str | None
    architecture: str | None
    size_label: str | None
    context_length: str | None
    front: Mapping[str, Any]
    prompt: tuple[str, str] | None
    template: str | None
    files: Sequence[CardFile]
    version: str
    drafts: str = ""

    @property
    def imatrix(self) -> tuple[str | None, int | None] | None:
        """The importance matrix of the first file that has one."""
        return next((file.imatrix for file in self.files if file.imatrix), None)

    @property
    def best(self) -> CardFile:
        """The file that examples use."""
        models = [file for file in self.files if not file.senses] or self.files
        return next((file for file in models if file.encoding == "Q4_K_M"), models[0])

    @property
    def projector(self) -> CardFile | None:
        """The projector that lies beside the models."""
        return next((file for file in self.files if file.senses and file is not self.best), None)

    def url(self, file: CardFile) -> str | None:
        """Where a file can be downloaded; None without a repository."""
        return f"https://huggingface.co/{self.repo}/blob/main/{quote(file.place)}" if self.repo else None


def facts_of(metadata: Metadata, files: Sequence[CardFile], publisher: Publisher, *, version: str) -> CardFacts:
    """The facts of a card. metadata: of any of the files. version: of this program."""
    kind = kind_of(metadata, files)
    base = publisher.base_model or _hub_id(metadata, adapter=kind == "adapter")
    template = _said(metadata, Keys.Tokenizer.CHAT_TEMPLATE)
    architecture = _said(metadata, General.ARCHITECTURE)
    name = _name(metadata)
    own = base.rpartition("/")[2] if base and kind != "adapter" else None
    author = publisher.author or next((file.by for file in files if file.by), None)
    return CardFacts(
        kind=kind,
        title=own or name or "Model",
        name=name,
        base_model=base,
        repo=publisher.repo,
        author=author,
        architecture=architecture,
        size_label=_said(metadata, General.SIZE_LABEL),
        context_length=_said(metadata, Keys.LLM.CONTEXT_LENGTH.format(arch=architecture)) if architecture else None,
        front=front_matter(metadata, files, kind, base, author),
        prompt=prompt_format(template) if template else None,
        template=template,
        files=sorted(files, key=lambda file: file.size),
        version=version,
        drafts=drafting_kind(metadata) if kind == "draft" else "",
    )


def kind_of(metadata: Metadata, files: Sequence[CardFile]) -> Kind:
    """What the files are, by their header."""
    if _said(metadata, General.TYPE) == GGUFType.ADAPTER:
        return "adapter"
    if files and all(file.bits == 0 for file in files) and metadata:
        return "vocabulary"
    if _said(metadata, General.ARCHITECTURE) in DRAFTS:
        return "draft"
    pooling = metadata.get(Keys.LLM.POOLING_TYPE.format(arch=_said(metadata, General.ARCHITECTURE) or ""))
    if is_encoder(metadata) or (pooling is not None and pooling.data):
        return "reranking" if ranks(metadata) else "embedding"
    return "chat" if _said(metadata, Keys.Tokenizer.CHAT_TEMPLATE) else "completion"


def front_matter(
    metadata: Metadata, files: Sequence[CardFile], kind: Kind, base: str | None, author: str | None
) -> Mapping[str, Any]:
    """The YAML block, as data."""
    found: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": ("adapter" if kind == "adapter" else "quantized") if base else None,
        "license": _said(metadata, General.LICENSE),
        "license_name": _said(metadata, General.LICENSE_NAME),
        "license_link": _said(metadata, General.LICENSE_LINK),
        "language": _listed(metadata, General.LANGUAGES),
        "datasets": list(_datasets(metadata)),
        "pipeline_tag": _task(metadata, files, kind),
        "library_name": "gguf",
        "quantized_by": author,
        "tags": list(dict.fromkeys(["gguf", *_encodings(files), *_tags(metadata, files, kind)])),
    }
    return {key: _one_line(value) for key, value in found.items() if value}


def unfit_share(encoding: str | None, shapes: Iterable[Sequence[int]]) -> float:
    """The share of the weights in matrices whose rows are no whole number of the encoding's blocks.

    shapes: of all tensors, the slowest axis first.
    """
    block = _block(encoding)
    matrices = [shape for shape in shapes if len(shape) > 1]
    unfit = sum(prod(shape) for shape in matrices if shape[-1] % block)
    return unfit / max(sum(map(prod, matrices)), 1)


def _block(encoding: str | None) -> int:
    """Weights in a block of the type that most of a file's tensors should have."""
    for name in (encoding or "", (encoding or "").rpartition("_")[0]):
        if name in BY_NAME:
            return BY_NAME[name].weights
    return 256 if (encoding or "").startswith("IQ") else 1


def _task(metadata: Metadata, files: Sequence[CardFile], kind: Kind) -> str | None:
    """The hub's name for what the model does: by what goes in beside text; else that of the original's card, or the one
    that fits its kind.
    """
    if kind == "vocabulary":
        return None
    if senses := frozenset(sense for file in files for sense in file.senses):
        return SENSED.get(senses, "any-to-any")
    if kind == "reranking":
        return "text-ranking"
    usual = "feature-extraction" if kind == "embedding" else "text-generation"
    tags = _listed(metadata, General.TAGS)
    return next((tag for tag in tags if tag in TASKS and (kind == "embedding") == (tag != TASKS[0])), usual)


def _one_line(value: str | list[str]) -> str | list[str]:
    """A line of its own in a text could end the block."""
    return " ".join(value.split()) if isinstance(value, str) else [" ".join(each.split()) for each in value]


def _said(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    text = _text(value.data) if value and value.element is None else ""
    return text if text.strip() and not is_path(text) else None


def _name(metadata: Metadata) -> str | None:
    """The model's name, unless it is a path on the machine of whoever made the file."""
    name = _said(metadata, General.NAME)
    return None if name is None or is_local(name) else name


def _listed(metadata: Metadata, key: str) -> list[str]:
    value = metadata.get(key)
    texts = [_text(each) for each in value.data] if value and isinstance(value.data, tuple) else []
    return [text for text in texts if not holds_path(text)]


def _text(value: object) -> str:
    """Valid Unicode, whatever the header holds."""
    return str(value).encode("utf-8", "replace").decode()


def _hub_id(metadata: Metadata, *, adapter: bool) -> str | None:
    """The model on the hub that the files were made from; of an adapter, the one that it is for."""
    base = (General.BASE_MODEL_REPO_URL.format(id=0),) if adapter else ()
    for key in (*base, General.SOURCE_REPO_URL, General.REPO_URL):
        if match := HUB.match(_said(metadata, key) or ""):
            return match[1]
    return None


def _datasets(metadata: Metadata) -> Iterator[str]:
    index = 0
    while url := _said(metadata, General.DATASET_REPO_URL.format(id=index)):
        if match := HUB.match(url):
            yield match[1]
        index += 1


def _tags(metadata: Metadata, files: Sequence[CardFile], kind: Kind) -> list[str]:
    weighted = any(file.imatrix for file in files) or any(key.startswith(IMATRIX) for key in metadata)
    known = [*(["imatrix"] if weighted else []), *(["lora"] if kind == "adapter" else [])]
    return [
        *known,
        *(tag for tag in _listed(metadata, General.TAGS) if tag not in (*TASKS, *SENSED.values(), "any-to-any")),
    ]


def _encodings(files: Sequence[CardFile]) -> list[str]:
    return ["quantized"] if any(file.encoding not in (None, "F32", "F16", "BF16") for file in files) else []


def imatrix_of(metadata: Metadata) -> tuple[str | None, int | None] | None:
    """The data set and the chunks of the importance matrix that a file was made with; None without one."""
    if not any(key.startswith(IMATRIX) for key in metadata):
        return None
    chunks = metadata.get(f"{IMATRIX}chunks_count")
    return _said(metadata, f"{IMATRIX}dataset"), int(chunks.data) if chunks and isinstance(chunks.data, int) else None


def quantized_by(metadata: Metadata) -> str | None:
    """Who quantized a file, as its header says."""
    return _said(metadata, General.QUANTIZED_BY)
