"""Ops: how the rows of an output tensor are made from the rows of its sources.

A tensor is seen as rows: all axes but the last are flattened, a vector of n numbers is n rows of one. An op knows its
output shape without data (plan, layout and dry run need no more), and makes any range of rows on demand, so that
nothing larger than a chunk is ever in memory.

`read(k, start, stop)` gives rows of source k as an array (stop - start, width) in the dtype they are stored in:
float32, or uint16 holding the bits of float16 or bfloat16. An op that only moves rows returns that dtype; for an op
that computes, `read` gives float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.layout import rows_of

Shape = tuple[int, ...]
Array = NDArray[Any]
Read = Callable[[int, int, int], Array]


@dataclass(frozen=True)
class Op:
    """The base of all ops."""

    @property
    def computes(self) -> bool:
        """Whether `read` gives float32, and the result is float32, whatever the sources hold."""
        return False

    @property
    def integers(self) -> str:
        """The type of the output if the sources are whole numbers: I32, or I64 of sources that are that; else empty."""
        return ""

    @property
    def whole_rows(self) -> bool:
        """Whether each row of the output is a row of a source, as blocks and the B of an adapter need it."""
        return not self.computes

    def shape(self, *sources: Shape) -> Shape:
        """The output shape. ValueError, in words, if the op does not apply to these sources."""
        return sources[0]

    def granule(self, *sources: Shape) -> int:
        """Chunks should begin at a multiple of this many rows, or source rows are read twice."""
        return 1

    @property
    def shares(self) -> bool:
        """Whether what is read for some rows is read for other rows as well, or for another output of the source."""
        return False

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        """Rows start..stop (exclusive) of the output, as an array (stop - start, width)."""
        return read(0, start, stop)

    def inverse(self, source: int = 0) -> "Op | None":
        """The op that makes that source from the output alone; None if there is none."""
        return None

    def columns(self, width: int) -> NDArray[np.int64] | None:
        """Of the source's columns, `width`, that of every column of the output; None if they are in the same order."""
        return None

    @property
    def selects(self) -> bool:
        """Whether the output is some of the source's numbers, which `put` can write back (see `invert.Merge`)."""
        return False

    @property
    def across(self) -> bool:
        """Whether it selects whole matrices of a stack, so that `invert.Merge` makes the stack at once."""
        return False

    def view(self, source: Array) -> Array:
        """The output as a view into an array of the whole source."""
        raise NotImplementedError

    def put(self, output: Array, source: Array) -> None:
        """Write an output to the places in an array of the whole source that it was taken from."""
        view = self.view(source)
        view[...] = output.reshape(view.shape)


@dataclass(frozen=True)
class Copy(Op):
    """The source as it is."""

    @property
    def selects(self) -> bool:
        return True

    def inverse(self, source: int = 0) -> Op:
        return self

    def view(self, source: Array) -> Array:
        return source


@dataclass(frozen=True)
class Indices(Op):
    """Whole numbers from 0 on that choose one of `below`, as I32. ValueError in `rows` for any other number."""

    below: int

    @property
    def integers(self) -> str:
        return "I32"

    def inverse(self, source: int = 0) -> Op:
        return Copy()

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        found = read(0, start, stop)
        if found.size and not 0 <= found.min() <= found.max() < self.below:
            raise ValueError(f"it chooses from 0 to {self.below - 1}, and holds {found.min()} to {found.max()}")
        return found.astype("<i4")


@dataclass(frozen=True)
class RopePermute(Op):
    """Reorder the rows of each head from "halves" to "pairs".

    Hugging Face rotates dimension t with t + d/2, ggml's llama rotates 2t with 2t + 1 (LLAMA_ROPE_TYPE_NORM): output
    row 2t + k of a head is its source row t + k d/2. `heads` counts the heads in this very tensor: query heads for
    attn_q, key-value heads for attn_k. Applies to weights and biases alike. undo: from "pairs" to "halves". rotary: how
    many numbers of a head rotate, the first ones; the others stay. 0 stands for all.
    """

    heads: int
    undo: bool = False
    rotary: int = 0

    def inverse(self, source: int = 0) -> "RopePermute":
        return RopePermute(self.heads, not self.undo, self.rotary)

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if source[0] % (2 * self.heads):
            raise ValueError(f"{source[0]} rows cannot be divided into {self.heads} heads of an even size")
        if self.rotary % 2 or self.rotary * self.heads > source[0]:
            raise ValueError(f"{self.rotary} of the {source[0] // self.heads} rows of a head cannot be reordered")
        return source

    def granule(self, *sources: Shape) -> int:
        return sources[0][0] // self.heads

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        head = self.granule(*sources)
        first, last = start // head * head, -(-stop // head) * head
        within, turned = np.arange(head), self.rotary or head
        within[:turned] = np.arange(turned).reshape((turned // 2, 2) if self.undo else (2, turned // 2)).T.ravel()
        order = (np.arange(first, last, head)[:, None] + within).ravel()[start - first : stop - first]
        permuted: Array = read(0, first, last)[order - first]
        return permuted


@dataclass(frozen=True)
class Stack(Op):
    """Sources of one shape (r, c), one per expert, become (experts, r, c)."""

    def shape(self, *sources: Shape) -> Shape:
        if len(set(sources)) != 1:
            raise ValueError(f"the experts differ in shape: {sorted(set(sources))}")
        return (len(sources), *sources[0])

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        each = rows_of(sources[0])[0]
        parts = [
            read(k, max(start - k * each, 0), min(stop - k * each, each))
            for k in range(start // each, -(-stop // each))
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def inverse(self, source: int = 0) -> "Unstack":
        return Unstack(source)


@dataclass(frozen=True)
class Unstack(Op):
    """One of the tensors of a stack: (experts, r, c) becomes (r, c)."""

    index: int

    def shape(self, *sources: Shape) -> Shape:
        (source,) = sources
        if not 0 <= self.index < source[0]:
            raise ValueError(f"there is no tensor {self.index} in a stack of {source[0]}")
        return source[1:]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        before = self.index * rows_of(sources[0][1:])[0]
        return read(0, before + start, before + stop)


def as_matrix(shape: Shape) -> Shape:
    """A vector seen as rows of one number."""
    return shape if len(shape) > 1 else (*shape, 1)


def with_rows(shape: Shape, rows: int) -> Shape:
    """The shape with another number of rows in each matrix."""
    return (*shape[:-2], rows, shape[-1]) if len(shape) > 1 else (rows,)


@dataclass(frozen=True)
class Part(Op):
    """One of several tensors fused along the second last axis: rows begin..end (exclusive) of each matrix.

    Of a vector, numbers begin..end.
    """

    begin: int
    end: int

    def shape(self, *sources: Shape) -> Shape:
        matrix = as_matrix(sources[0])
        if not 0 <= self.begin < self.end <= matrix[-2]:
            raise ValueError(f"rows {self.begin} to {self.end} are not within {matrix[-2]}")
        return with_rows(sources[0], self.end - self.begin)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        fused, each = as_matrix(sources[0])[-2], self.end - self.begin
        parts = []
        for matrix in range(start // each, -(-stop // each)):
            shift = matrix * fused + self.begin
            low, high = max(start - matrix * each, 0), min(stop - matrix * each, each)
            parts.append(read(0, shift + low, shift + high))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def selects(self) -> bool:
        return True

    def view(self, source: Array) -> Array:
        taken = slice(self.begin, self.end)
        return source[..., taken, :] if source.ndim > 1 else source[taken]


@dataclass(frozen=True)
class AddOne(Op):
    """x + 1 in float32: Gemma's norms store their distance from one, ggml's hold the factor itself.

    Undoing it gives back x as far as the sum holds it: every bfloat16 from 2**-16 and float16 from 2**-13 on.
    """

    undo: bool = False

    @property
    def computes(self) -> bool:
        return True

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return read(0, start, stop) + np.float32(-1 if self.undo else 1)

    def inverse(self, source: int = 0) -> "AddOne":
        return AddOne(not self.undo)


@dataclass(frozen=True)
class Zeros(Op):
    """A tensor that llama.cpp wants and never uses, of this shape. It has no source."""

    size: Shape

    @property
    def computes(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        return self.size

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return np.zeros((stop - start, rows_of(self.size)[1]), np.float32)


@dataclass(frozen=True)
class Constant(Op):
    """A float32 vector computed from the config alone, such as rope factors. It has no source."""

    values: tuple[float, ...]

    @property
    def computes(self) -> bool:
        return True

    def shape(self, *sources: Shape) -> Shape:
        return (len(self.values),)

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        return np.asarray(self.values[start:stop], np.float32)[:, None]


@dataclass(frozen=True)
class PlaceAdded(Op):
    """Integers, each with its own place added: distances from the places become numbers of tokens, or back (undo)."""

    undo: bool = False

    @property
    def integers(self) -> str:
        return "I64"

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        places = np.arange(start, stop, dtype=np.int64)[:, None]
        found: Array = read(0, start, stop) + (-places if self.undo else places)
        return found

    def inverse(self, source: int = 0) -> "PlaceAdded":
        return PlaceAdded(not self.undo)
