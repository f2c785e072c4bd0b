"""What adapters do to one weight of a base: low-rank updates, rows and vectors, one step after the other."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.lora.peft import Tokens, Update
from ggufsmith.convert.stored import StoredTensor

Floats = NDArray[np.float32]
RANKS = 4  # that the kernel takes at a time


class Step(Protocol):
    """One change of one weight. sources: the adapter's tensors that it reads."""

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """The adapter's tensors that it reads."""

    def apply(self, store: Store, first: int, last: int, out: Floats) -> None:
        """Change rows first..last (exclusive) of the weight, which are in `out`, (last - first, width)."""


@dataclass(frozen=True)
class LowRank:
    """One update of one weight. scale: with the user's factor. turned: (B @ A)^T is added, not B @ A."""

    update: Update
    scale: float
    turned: bool

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """See `Step.sources`."""
        update = self.update
        return (update.down, update.up, *(() if update.magnitude is None else (update.magnitude,)))

    def apply(self, store: Store, first: int, last: int, out: Floats) -> None:
        """See `Step.apply`."""
        from ggufsmith.quantize.kernels.products import add_product

        down, up = self.update.down, self.update.up
        if self.turned:
            left, whole = floats(down, store.columns(down, first, last)).T, up
        else:
            left, whole = floats(up, store.rows(up, first, last)), down
        rank = -(-self.update.rank // RANKS) * RANKS
        padded = np.zeros((last - first, rank), np.float32)
        padded[:, : self.update.rank] = left
        right = store.kept((whole.name, "wide"), rank * out.shape[1] * 4, lambda: self._wide(store, whole, rank))
        room = np.empty(out.shape[1], np.float32)
        add_product(padded.reshape(-1), right.reshape(-1), np.float32(self.scale), *right.shape, room, out.reshape(-1))

    def _wide(self, store: Store, source: StoredTensor, rank: int) -> Floats:
        """The factor that all rows share: (rank, width), zeros below."""
        values = floats(source, store.rows(source, 0, source.shape[0]))
        values = values.T if self.turned else values
        wide = np.zeros((rank, values.shape[1]), np.float32)
        wide[: len(values)] = values
        return wide


def floats(source: StoredTensor, stored: NDArray[np.generic]) -> Floats:
    """Stored rows of an adapter's tensor as float32. Malformed if one is NaN or infinite."""
    values = to_f32(stored, source.dtype)
    if not np.isfinite(values).all():
        raise Malformed(f"{source.name}: {np.sum(~np.isfinite(values))} weights are NaN or infinite", where=source.path)
    return values


@dataclass(frozen=True)
class Rows:
    """Rows that were trained one by one take the places of the weight's."""

    tokens: Tokens

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """See `Step.sources`."""
        return (self.tokens.rows,)

    def apply(self, store: Store, first: int, last: int, out: Floats) -> None:
        """See `Step.apply`."""
        for k, row in enumerate(self.tokens.ids):
            if first <= row < last:
                out[row - first] = floats(self.tokens.rows, store.rows(self.tokens.rows, k, k + 1))[0]


@dataclass(frozen=True)
class Shift:
    """A vector times a factor is added to a bias."""

    vector: StoredTensor
    factor: float

    @property
    def sources(self) -> tuple[StoredTensor, ...]:
        """See `Step.sources`."""
        return (self.vector,)

    def apply(self, store: Store, first: int, last: int, out: Floats) -> None:
        """See `Step.apply`."""
        out += np.float32(self.factor) * floats(self.vector, store.rows(self.vector, first, last))
