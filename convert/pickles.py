"""Pickled checkpoints: torch reads which tensors there are, and where; their bytes are read like those of any file.

torch.load runs with weights_only, which unpickles tensors and plain containers and nothing else, from torch 2.10 on
(CVE-2025-32434 and CVE-2026-24747 defeat it in older ones), and under FakeTensorMode, which loads no weights and says
at which offset of the file each storage lies. The offsets are checked against the file's own (zip) directory.
"""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.convert.stored import StoredTensor

OLDEST_TORCH = (2, 10)
INSTALL = "pip install 'ggufsmith[torch]'"
SAVE_AGAIN = "Load it where it was made and save it as safetensors (model.save_pretrained)."
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: the lengths of its name and of its extra field
DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "bool": "BOOL",
}


def read_pickle(path: Path) -> Iterator[StoredTensor]:
    """The tensors of a file that torch.save wrote, in its order.

    Unsupported: torch is missing or too old, or the file is older than torch 1.6. Malformed: it is damaged, or holds
    anything but tensors by name.
    """
    storages = _storages(path)
    torch = _torch(path)
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with FakeTensorMode():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # around it stands how to load it all the same
        what = f"the file contains objects other than tensors, so it was not loaded{f': {named[1]}' if named else ''}"
        raise Malformed(what, where=path, fix=SAVE_AGAIN) from None
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, EOFError, OSError) as error:
        what = str(error).partition("\n")[0]
        raise Malformed(f"torch cannot read it: {what}", where=path, fix="Download it again.") from None
    if not isinstance(loaded, Mapping):
        raise Malformed(f"it holds a {type(loaded).__name__}, not tensors by name", where=path, fix=SAVE_AGAIN)
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            kind = type(tensor).__name__
            raise Malformed(f"{name!r} is a {kind}, not a tensor", where=path, fix=SAVE_AGAIN)
        yield _source(path, name, tensor, storages)


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise Unsupported("this is a pickled checkpoint, but torch is not installed", where=path, fix=INSTALL) from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        raise Unsupported(
            f"this is a pickled checkpoint, but torch {torch.__version__} does not read those safely; "
            f"{'.'.join(map(str, OLDEST_TORCH))} does",
            where=path,
            fix=INSTALL,
        )
    return torch


def _storages(path: Path) -> dict[int, int]:
    """Offset -> size of every storage in the file, from its zip directory."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise Unsupported(
                "this file was not written by torch 1.6 or later, or it is cut short", where=path, fix=SAVE_AGAIN
            )
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                order = next((e for e in entries if e.filename.endswith("/byteorder")), None)
                if order is not None and order.file_size < 16 and archive.read(order) != b"little":
                    raise Unsupported("it was written on a big-endian machine", where=path, fix=SAVE_AGAIN)
            found = {}
            for entry in entries:
                if "/data/" not in entry.filename or entry.compress_type != zipfile.ZIP_STORED:
                    continue
                file.seek(entry.header_offset)
                name, extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
                found[entry.header_offset + LOCAL_HEADER.size + name + extra] = entry.file_size
        except (zipfile.BadZipFile, struct.error, OSError) as error:
            raise Malformed(
                f"the file is damaged or incomplete: {error}", where=path, fix="Download it again."
            ) from None
    return found


def _source(path: Path, name: str, tensor: Any, storages: Mapping[int, int]) -> StoredTensor:
    if not tensor.is_contiguous():
        raise Unsupported(f"{name} is stored with the strides {list(tensor.stride())}", where=path, fix=SAVE_AGAIN)
    dtype = str(tensor.dtype).removeprefix("torch.")
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    shift = tensor.storage_offset() * tensor.element_size()
    nbytes = tensor.numel() * tensor.element_size()
    if start is None or start not in storages or shift + nbytes > storages[start]:
        raise Malformed(f"{name}: its bytes do not lie in any storage that the file lists", where=path)
    return StoredTensor(name, tuple(tensor.shape), DTYPES.get(dtype, dtype), path, start + shift, nbytes)
