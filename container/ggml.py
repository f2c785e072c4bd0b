"""Opens the files that llama.cpp wrote before GGUF: `ggml`, `ggmf` and `ggjt`, which hold Llama models only.

    magic  u32, "ggml", "ggmf" or "ggjt" as a number; then, but for ggml, a version u32
    seven  u32: vocabulary, width, multiple of, heads, layers, rotary dimensions, file type
    tokens length u32, bytes, and from ggmf on a score float32
    tensors, up to the end of the file: dimensions, length of the name, type (u32 each), the sizes, fastest axis first
           (u32 each), the name, in ggjt padding to a multiple of 32 bytes, and the data

Blocks changed twice, so that older ones mean something else under the same type: ggjt v2 reordered the nibbles of all
4- and 5-bit types (llama.cpp#1405), v3 made the scales of Q4_0, Q4_1 and Q8_0 half precision (#1508). Those of today's
K types, which came after v3 (#1684), are unchanged.

Source: llama.cpp before August 2023, llama.cpp and llama-util.h (llama_file_loader); convert_llama_ggml_to_gguf.py.
As in `reader`, what a field asks for is compared with the bytes that remain before anything is allocated.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.formats import BY_ID, Format
from ggufsmith.container.layout import MAX_WEIGHTS, padded
from ggufsmith.container.positional import read_at, regular_file
from ggufsmith.container.reader import MAX_TENSORS, TensorInfo

ALIGNMENT = 32
MAX_TOKENS, MAX_TOKEN = 2**20, 4096  # in a file; bytes of one
MAX_NAME, MAX_DIMS = 255, 2  # bytes of a tensor's name; Llama has no third axis
WINDOW = 1 << 16  # bytes read at a time
FLOATS = frozenset(("F32", "F16"))
FIVE_BITS = FLOATS | {"Q5_0", "Q5_1"}
REMOVED = {4: "Q4_2", 5: "Q4_3"}
EVERY = FIVE_BITS | {"Q4_0", "Q4_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}


@dataclass(frozen=True)
class Variant:
    """One kind of file. formats: the types whose blocks mean the same today."""

    name: str
    magic: bytes
    version: int | None
    scores: bool
    aligned: bool
    formats: frozenset[str]


VARIANTS = (
    Variant("ggml", b"lmgg", None, scores=False, aligned=False, formats=FLOATS),
    Variant("ggmf v1", b"fmgg", 1, scores=True, aligned=False, formats=FLOATS),
    Variant("ggjt v1", b"tjgg", 1, scores=True, aligned=True, formats=FLOATS),
    Variant("ggjt v2", b"tjgg", 2, scores=True, aligned=True, formats=FIVE_BITS),
    Variant("ggjt v3", b"tjgg", 3, scores=True, aligned=True, formats=EVERY),
)
MAGICS = frozenset(variant.magic for variant in VARIANTS)


@dataclass(frozen=True)
class Sizes:
    """The seven numbers of the header, in their order."""

    vocab: int
    embd: int
    multiple: int
    heads: int
    layers: int
    rotary: int
    file_type: int


@dataclass(frozen=True)
class GgmlFile:
    """An opened file; close its `fd`.

    tokens:  (bytes, score) by id; scores are 0 where the file has none.
    tensors: by the names of the original release ("layers.0.attention.wq.weight"), in the order of the file.
    size:    bytes of the file.
    """

    path: Path
    variant: Variant
    sizes: Sizes
    tokens: tuple[tuple[bytes, float], ...]
    tensors: Mapping[str, TensorInfo]
    size: int
    fd: int


def is_ggml(path: Path) -> bool:
    """Whether a file begins like one of these. A pipe, which reading could block, is none."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) in MAGICS
    except OSError:
        return False


def open_ggml(path: Path) -> GgmlFile:
    """Open an old file. Reads and checks everything but the data of the tensors.

    Malformed for a file that breaks the format, Unsupported for a version or a type of another meaning, Failure if it
    cannot be read at all.
    """
    with regular_file(path) as (fd, size):
        cursor = _Cursor(path, fd, size)
        variant = _variant(cursor)
        sizes = Sizes(*struct.unpack("<7I", cursor.take(28, "the model's sizes")))
        tokens = _tokens(cursor, variant, sizes.vocab)
        return GgmlFile(path, variant, sizes, tokens, _tensors(cursor, variant), size, fd)


class _Cursor:
    """A position in the file, and a window of its bytes."""

    def __init__(self, path: Path, fd: int, size: int) -> None:
        self.path, self.fd, self.size = path, fd, size
        self.at = 0
        self.window, self.start = b"", 0

    def refuse(self, what: str) -> Malformed:
        return Malformed(what, where=self.path, fix="Download the file again, or convert the original model.")

    @property
    def left(self) -> int:
        return self.size - self.at

    def skip(self, count: int, what: str) -> None:
        if count > self.left:
            raise self.refuse(f"{what} needs {count} bytes at byte {self.at}, but the file has {self.size}")
        self.at += count

    def take(self, count: int, what: str) -> bytes:
        begin = self.at
        self.skip(count, what)
        if begin < self.start or begin + count > self.start + len(self.window):
            more = bytearray(min(self.size - begin, max(count, WINDOW)))
            try:
                got = read_at(self.fd, memoryview(more), begin)
            except OSError as error:
                raise Failure(f"the file cannot be read: {error.strerror}", where=self.path) from error
            self.window, self.start = bytes(more[:got]), begin
        found = self.window[begin - self.start :][:count]
        if len(found) < count:
            raise self.refuse(f"the file ends inside {what}: it was cut while it was read")
        return found

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")


def _variant(cursor: _Cursor) -> Variant:
    magic = cursor.take(4, "the magic")
    if magic not in MAGICS:
        raise cursor.refuse(f"starts with {magic!r}, which no GGML file does")
    version = None if magic == VARIANTS[0].magic else cursor.u32("the version")
    for variant in VARIANTS:
        if (variant.magic, variant.version) == (magic, version):
            return variant
    raise Unsupported(f"version {version} of {magic[::-1].decode()} is not known", where=cursor.path)


def _tokens(cursor: _Cursor, variant: Variant, count: int) -> tuple[tuple[bytes, float], ...]:
    least = 8 if variant.scores else 4
    if not 0 < count <= min(MAX_TOKENS, cursor.left // least):
        raise cursor.refuse(f"{count} tokens do not fit in the {cursor.left} bytes that remain")
    tokens = []
    for token in range(count):
        length = cursor.u32("a token")
        if length > MAX_TOKEN:
            raise cursor.refuse(f"token {token} is {length} bytes long; the limit is {MAX_TOKEN}")
        text = cursor.take(length, "a token")
        score = struct.unpack("<f", cursor.take(4, "a score"))[0] if variant.scores else 0.0
        tokens.append((text, score))
    return tuple(tokens)


def _tensors(cursor: _Cursor, variant: Variant) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    while cursor.left:
        if len(tensors) >= MAX_TENSORS:
            raise cursor.refuse(f"more than {MAX_TENSORS} tensors")
        tensor = _tensor(cursor, variant)
        if tensor.name in tensors:
            raise cursor.refuse(f"two tensors have the name {tensor.name!r}")
        tensors[tensor.name] = tensor
    return tensors


def _tensor(cursor: _Cursor, variant: Variant) -> TensorInfo:
    axes, length, number = struct.unpack("<3I", cursor.take(12, "a tensor"))
    if not 1 <= axes <= MAX_DIMS:
        raise cursor.refuse(
            f"the tensor header before byte {cursor.at} gives {axes} dimensions; only 1 and 2 are valid"
        )
    if not 1 <= length <= MAX_NAME:
        raise cursor.refuse(f"the tensor name before byte {cursor.at} is {length} bytes long; 1 to {MAX_NAME} are")
    shape = struct.unpack(f"<{axes}I", cursor.take(4 * axes, "a shape"))[::-1]
    raw = cursor.take(length, "a tensor's name")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise cursor.refuse(f"the tensor name {raw!r} is not valid UTF-8") from None
    form = _format(cursor, variant, name, number)
    weights = shape[0] * shape[-1] if axes > 1 else shape[0]
    if not 0 < weights <= MAX_WEIGHTS or shape[-1] % form.weights:
        raise cursor.refuse(f"{name}: {form.name} cannot have the shape {list(shape)}")
    if variant.aligned:
        cursor.skip(padded(cursor.at, ALIGNMENT) - cursor.at, f"the padding of {name}")
    offset = cursor.at
    cursor.skip(form.nbytes(shape), f"the data of {name}")
    return TensorInfo(name, shape, form, offset, form.nbytes(shape))


def _format(cursor: _Cursor, variant: Variant, name: str, number: int) -> Format:
    form = BY_ID.get(number)
    if form is not None and form.name in variant.formats:
        return form
    known = REMOVED.get(number) or (form.name if form is not None and form.name in EVERY else None)
    if known is None:
        raise cursor.refuse(f"{name} has the type {number}, which no file of this kind has")
    raise Unsupported(
        f"{name} is {known}; in {variant.name} that does not mean what it means today: ggjt v2 reordered the bits of "
        "quantized blocks, and v3 halved the scales of Q4_0, Q4_1 and Q8_0",
        where=cursor.path,
        fix=f"{variant.name} can hold {', '.join(sorted(variant.formats))}; find the model as ggjt v3 or in f16.",
    )
