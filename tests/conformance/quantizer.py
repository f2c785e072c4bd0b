"""llama.cpp's own quantizer, `llama_model_quantize`: dry runs, which log every tensor's type, and real runs.

Only for conformance tests, and in this process: inputs on which it aborts are not to be given to it.
"""

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
from llama_models import logged
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.values import Metadata

LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[[ \d,]*\], type = +(\S+), size = [^\n]*?(?:\((\S+)\))?\n")


@dataclass(frozen=True)
class Settings:
    """Options of one run, named as the parameters of llama_model_quantize."""

    file_type: int
    threads: int = 1
    output_type: str | None = None
    token_embedding_type: str | None = None
    allow_requantize: bool = True
    leave_output: bool = False
    only_copy: bool = False
    pure: bool = False
    keep_split: bool = False
    overrides: Sequence[tuple[str, str]] = ()
    importance: Mapping[str, NDArray[np.float32]] | None = None
    prune: Sequence[int] = ()
    metadata: Mapping[str, int | float | bool | str] | None = None


def dry_run(source: Path, settings: Settings) -> dict[str, str]:
    """The type (as ggml's enum names it, in capitals) of every tensor."""
    text = _run(source, source.with_suffix(".none"), settings, dry=True)
    return {name: (new or old).upper() for name, old, new in LINE.findall(text)}


def quantize(source: Path, output: Path, settings: Settings) -> Path:
    _run(source, output, settings, dry=False)
    return output


def _run(source: Path, output: Path, settings: Settings, dry: bool) -> str:
    params = lib.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.dry_run = settings.threads, settings.file_type, dry
    params.allow_requantize, params.only_copy = settings.allow_requantize, settings.only_copy
    params.quantize_output_tensor, params.pure = not settings.leave_output, settings.pure
    params.keep_split = settings.keep_split
    if settings.output_type:
        params.output_tensor_type = format_of(settings.output_type).id
    if settings.token_embedding_type:
        params.token_embedding_type = format_of(settings.token_embedding_type).id
    keep: list[object] = []
    if settings.overrides:
        rows = [(pattern.encode(), format_of(name).id) for pattern, name in settings.overrides]
        array = (lib.llama_model_tensor_override * (len(rows) + 1))(*rows)
        params.tt_overrides, _ = array, keep.append(array)
    if settings.importance is not None:
        entries = (lib.llama_model_imatrix_data * (len(settings.importance) + 1))()
        for entry, (name, values) in zip(entries, settings.importance.items(), strict=False):
            data = np.ascontiguousarray(values, np.float32)
            entry.name, entry.size = name.encode(), data.size
            entry.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            keep.append(data)
        params.imatrix, _ = entries, keep.append(entries)
    if settings.prune:
        layers = (ctypes.c_int * (len(settings.prune) + 1))(*sorted(settings.prune), -1)
        params.prune_layers, _ = layers, keep.append(layers)
    if settings.metadata:
        values = (lib.llama_model_kv_override * (len(settings.metadata) + 1))()
        for override, (key, value) in zip(values, settings.metadata.items(), strict=False):
            override.key = key.encode()
            _fill(override, value)
        params.kv_overrides, _ = values, keep.append(values)
    with logged() as pieces:
        code = lib.llama_model_quantize(str(source).encode(), str(output).encode(), ctypes.byref(params))
    text = b"".join(pieces).decode(errors="replace")  # it cuts long values in the middle of a character
    if code:
        raise RuntimeError(f"llama_model_quantize failed on {source}:\n{text[-2000:]}")
    return text


def _fill(override: "lib.llama_model_kv_override", value: int | float | bool | str) -> None:
    if isinstance(value, bool):
        override.tag, override.value.val_bool = lib.LLAMA_KV_OVERRIDE_TYPE_BOOL, value
    elif isinstance(value, int):
        override.tag, override.value.val_i64 = lib.LLAMA_KV_OVERRIDE_TYPE_INT, value
    elif isinstance(value, float):
        override.tag, override.value.val_f64 = lib.LLAMA_KV_OVERRIDE_TYPE_FLOAT, value
    else:
        override.tag, override.value.val_str = lib.LLAMA_KV_OVERRIDE_TYPE_STR, value.encode()


def write_hollow(path: Path, metadata: Metadata, tensors: Sequence[TensorSpec]) -> Path:
    """A GGUF file of zeros, as holes where the filesystem has them: for runs that look at headers only."""
    layout = lay_out(metadata, tensors)
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)
    return path
