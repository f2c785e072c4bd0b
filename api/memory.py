"""A model in memory as a source: a model of transformers with its tokenizer, or tensors by name with a config.

It becomes a temporary folder with its small files, as saving would write them, and with the header of a safetensors
file. The weights stay where they are and are read from there, so that neither disk nor memory holds them twice.

Source of the order of tensors in the file: the safetensors library, `prepare` in safetensors/src/tensor.rs.
"""

import json
import re
import shutil
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.hub.names import Located
from ggufsmith.convert.inputs import companions
from ggufsmith.convert.standin import stand_in
from ggufsmith.keywords import WrongArgument, path_of
from ggufsmith.naming.local import folder_name, is_id

WEIGHTS = "model.safetensors"
# Types as torch and numpy call them -> as safetensors does, in the order in which a file has them, last first.
DTYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}


@dataclass(frozen=True)
class _Held:
    """One tensor: a flat array of bytes of numpy or torch, wherever it is."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any
    nbytes: int


class MemoryFiles:
    """Opens a file whose bytes are tensors in memory (see `stored.Opener`); it is also its own `stored.Reader`.

    start: where the first tensor begins in the file; the others follow without gaps.
    """

    def __init__(self, path: Path, start: int, held: Sequence[_Held]) -> None:
        self.path, self.held = path, held
        self.begins = [start + sum(each.nbytes for each in held[:k]) for k in range(len(held))]

    @property
    def remote(self) -> Collection[Path]:
        """The file, which has only its header on the disk."""
        return (self.path,)

    def __call__(self, paths: Sequence[Path], /) -> "MemoryFiles":
        return self

    def expect(self, extents: Iterable[tuple[Path, int, int]]) -> None:
        """It is there."""

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        """See `stored.Reader.read_into`. Tensors on another device are fetched piece by piece."""
        done = 0
        while done < len(buffer):
            k = bisect_right(self.begins, offset + done) - 1
            tensor = self.held[k]
            start = offset + done - self.begins[k]
            piece = tensor.data[start : min(start + len(buffer) - done, tensor.nbytes)]
            if not len(piece):
                break
            buffer[done : done + len(piece)] = _as_array(piece).data
            done += len(piece)
        return done

    def close(self) -> None:
        """The tensors are the caller's."""


@dataclass(frozen=True)
class InMemory:
    """A model in memory. model: of transformers, or tensors by name. name: what the model is called, or None.

    config: of tensors by name: a mapping, a configuration of transformers, or the path of a config.json or its folder.
    tokenizer: of transformers, or the path of a folder that has its files.
    """

    model: Any
    config: Any = None
    tokenizer: Any = None
    name: str | None = None

    refused: ClassVar[Mapping[str, str]] = {
        "provenance": "hashes the input files, but a model in memory has none",
        "resume": "continues from files, but a model in memory has none",
        "scheduler": "works on other machines, which cannot read the memory of this one",
        "stream": "is about models on a hub",
        "revision": "is about models on a hub",
    }

    @contextmanager
    def located(self) -> Iterator[Located]:
        """A folder that can be opened like any other, as long as the `with` lasts.

        WrongArgument for what is no model; Unsupported for one whose weights are not all in the memory of this process.
        """
        held = _held(_tensors(self.model))
        with TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as temporary:
            folder = Path(temporary, self._folder_name())
            folder.mkdir()
            self._write_config(folder)
            _write_tokenizer(self.tokenizer, folder)
            header = _header(held)
            size = len(header) + sum(each.nbytes for each in held)
            stand_in(folder / WEIGHTS, header, size)
            yield Located(folder, folder.name, MemoryFiles(folder / WEIGHTS, len(header), held))

    def _folder_name(self) -> str:
        """What files and general.name are called after, if nothing else says it."""
        saved = getattr(getattr(self.model, "config", None), "_name_or_path", None)
        known = self.name or (saved if isinstance(saved, str) and is_id(saved) else "")
        return re.sub(r"[^\w.+-]+", "-", folder_name(known) or "").strip("-.") or "model"

    def _write_config(self, folder: Path) -> None:
        config = self.config
        if hasattr(self.model, "state_dict"):
            if config is not None:
                raise WrongArgument("the model has a config of its own", where="config=", fix="Leave it out.")
            config = deepcopy(self.model.config)
            config.architectures = [type(self.model).__name__]
            generation = getattr(self.model, "generation_config", None)
            if generation is not None and self.model.can_generate():
                generation.save_pretrained(folder)
        if hasattr(config, "save_pretrained"):
            config.save_pretrained(folder)
        elif isinstance(config, Mapping):
            (folder / "config.json").write_text(json.dumps(dict(config)), encoding="utf-8")
        elif config is None:
            raise WrongArgument(
                "tensors by name do not say what model they are", where="config=", fix="Pass config=, such as a dict."
            )
        else:
            _copy(path_of("config", config), folder, ("config.json", "generation_config.json", "README.md"))


def is_in_memory(source: Any) -> bool:
    """Whether a source is a model, or tensors by name. WrongArgument for what can be neither, nor a path."""
    if isinstance(source, Mapping) or hasattr(source, "state_dict"):
        return True
    path_of("source", source)
    return False


def _tensors(model: Any) -> Mapping[str, Any]:
    """The tensors of a model under the names that saving gives them; those that are tied once."""
    if isinstance(model, Mapping):
        return model
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise Unsupported(
            "the model has adapters that are not merged",
            where=type(model).__name__,
            fix="Pass the result of its merge_and_unload().",
        )
    if not hasattr(model, "config") or not hasattr(model.config, "save_pretrained"):
        raise WrongArgument(
            "the model has no config of transformers",
            where=type(model).__name__,
            fix="Pass its state_dict(), and a config with config=.",
        )
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    tensors = _untied({name: each for name, each in model.state_dict().items() if name not in ignored})
    try:
        from transformers.core_model_loading import revert_weight_conversion  # since 5.0, which fuses some tensors
    except ImportError:
        return tensors
    reverted: Mapping[str, Any] = revert_weight_conversion(model, tensors)
    return reverted


def _untied(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Without tensors that are another one's memory: the first of them stays, as the embeddings stand first."""
    seen: set[tuple[Any, ...]] = set()
    found = {}
    for name, tensor in tensors.items():
        pointer = tensor.data_ptr() if hasattr(tensor, "data_ptr") else 0
        key = (pointer, tuple(tensor.shape), str(tensor.dtype)) if pointer else (name,)
        if key not in seen:
            seen.add(key)
            found[name] = tensor
    return found


def _held(tensors: Mapping[str, Any]) -> list[_Held]:
    """In the order of a safetensors file: wide types first, then by name. WrongArgument for what is not a tensor."""
    found = [_one(name, tensor) for name, tensor in tensors.items()]
    rank = {dtype: number for number, dtype in enumerate(DTYPES.values())}
    return sorted(found, key=lambda each: (-rank[each.dtype], each.name))


def _one(name: Any, tensor: Any) -> _Held:
    dtype = DTYPES.get(str(getattr(tensor, "dtype", "")).removeprefix("torch."))
    if not isinstance(name, str) or dtype is None or not hasattr(tensor, "shape"):
        raise WrongArgument(
            f"{name!r:.80} is a {type(tensor).__name__}, not a tensor of numbers that can be converted",
            fix="Pass tensors of torch or arrays of numpy by their names.",
        )
    if hasattr(tensor, "full_tensor") or getattr(getattr(tensor, "device", None), "type", "") == "meta":
        raise Unsupported(
            "the tensor is not in the memory of this process",
            where=name,
            fix="Gather the whole state dict first, and pass that with config=.",
        )
    shape = tuple(int(each) for each in tensor.shape)
    if hasattr(tensor, "detach"):  # of torch
        import torch

        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    else:
        data = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return _Held(name, dtype, shape, data, len(data))


def _as_array(piece: Any) -> NDArray[np.uint8]:
    return piece if isinstance(piece, np.ndarray) else np.asarray(piece.cpu().numpy())


def _header(held: Sequence[_Held]) -> bytes:
    """Of a safetensors file: its length, and JSON padded to a multiple of 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for each in held:
        entries[each.name] = {
            "dtype": each.dtype,
            "shape": list(each.shape),
            "data_offsets": [end, end + each.nbytes],
        }
        end += each.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_tokenizer(tokenizer: Any, folder: Path) -> None:
    if tokenizer is None:
        raise WrongArgument(
            "a model in memory needs its tokenizer",
            where="tokenizer=",
            fix="Pass it, or the folder that has its files.",
        )
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        return
    place = path_of("tokenizer", tokenizer)
    if not place.is_dir():
        raise WrongArgument("there is no such folder", where=place, fix="Pass the folder of the tokenizer's files.")
    names = [name for name, _ in companions(place)]
    _copy(place, folder, [name for name in names if re.match(r"(?!config|generation|adapter|README)", name)])


def _copy(place: Path, folder: Path, names: Iterable[str]) -> None:
    """Copy files that are not there yet. place: their folder, or the first of them. Failure if that is not there."""
    home = place if place.is_dir() else place.parent
    if not (place / "config.json" if place.is_dir() else place).exists() and "config.json" in names:
        raise WrongArgument(
            "there is no such config", where=place, fix="Pass a config.json, or the folder that has one."
        )
    for name in names:
        source = place if place.is_file() and name == "config.json" else home / name
        if source.is_file() and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
