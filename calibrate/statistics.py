"""What `--show-statistics` says of an importance matrix, as llama-imatrix defines it (tools/imatrix/imatrix.cpp,
compute_statistics, compute_cossim and show_statistics).

All of it is about the mean squares of a tensor's inputs; matrices of a stack that saw no token are left out.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.quantize.imatrix.record import Entry, Imatrix

INACTIVE = 1e-5  # a mean square up to this counts as none
BLOCK = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class TensorStatistics:
    """One tensor's.

    layer:     the number of its block; None outside of blocks. part: its name within the block.
    total, minimum, maximum, mean, deviation: of the mean squares. elements: how many they are.
    active:    the share of them above 1e-5, 0 to 1.
    entropy:   of their distribution, in bits; evenness: that over its maximum, 0 to 1.
    density:   the share of them more than one deviation above the mean ("ZD"), 0 to 1.
    similarity: cosine of the sums with those of the same tensor in the block before; 0 if there is none.
    matrices:  of the stack, 1 if it is none; unused: those that saw no token; fewest: tokens that any of them saw.
    """

    tensor: str
    layer: int | None
    part: str
    total: float
    minimum: float
    maximum: float
    mean: float
    deviation: float
    elements: int
    active: float
    entropy: float
    evenness: float
    density: float
    similarity: float
    matrices: int
    unused: int
    fewest: int


@dataclass(frozen=True)
class LayerStatistics:
    """The means over a block's tensors, weighted by their elements."""

    layer: int
    total: float
    density: float
    similarity: float


def statistics(imatrix: Imatrix) -> list[TensorStatistics]:
    """Of every tensor: first the stacks, the worst covered first; then in llama-imatrix's order, by part and total."""
    found = [_statistics(name, entry, _before(imatrix, name)) for name, entry in imatrix.entries.items()]
    return sorted(found, key=_order)


def layers(tensors: Iterable[TensorStatistics]) -> list[LayerStatistics]:
    """Of every block, in their order."""
    by_layer: defaultdict[int, list[TensorStatistics]] = defaultdict(list)
    for each in tensors:
        if each.layer is not None:
            by_layer[each.layer].append(each)
    return [LayerStatistics(layer, *_means(each)) for layer, each in sorted(by_layer.items())]


def _means(tensors: list[TensorStatistics]) -> Iterator[float]:
    weights = [each.elements for each in tensors]
    for field in ("total", "density", "similarity"):
        yield float(np.average([getattr(each, field) for each in tensors], weights=weights))


def _order(each: TensorStatistics) -> tuple[bool, float, int, str, float]:
    stack = each.matrices > 1
    unused = each.unused / each.matrices
    return not stack, -unused, each.fewest if stack else 0, each.part, -each.total


def _statistics(name: str, entry: Entry, before: Entry | None) -> TensorStatistics:
    used = np.repeat(entry.counts > 0, entry.sums.shape[1])
    means = entry.weights[used].astype(np.float64)
    total, mean, deviation = float(means.sum()), float(means.mean()), float(means.std())
    shares = means[means > 0] / total if total else means[:0]
    entropy = float(-(shares * np.log2(shares)).sum())
    parts = name.split(".")
    block = BLOCK.search(name)
    return TensorStatistics(
        tensor=name,
        layer=int(block[1]) if block else None,
        part=parts[parts.index("weight") - 1] if "weight" in parts[1:] else name,
        total=total,
        minimum=float(means.min()),
        maximum=float(means.max()),
        mean=mean,
        deviation=deviation,
        elements=means.size,
        active=float(np.mean(means > INACTIVE)),
        entropy=entropy,
        evenness=entropy / float(np.log2(means.size)) if means.size > 1 else 0.0,
        density=float(np.mean(means > mean + deviation)) if deviation else 0.0,
        similarity=_cosine(entry.sums, before.sums) if before else 0.0,
        matrices=len(entry.counts),
        unused=len(entry.unused),
        fewest=int(entry.counts.min()),
    )


def _before(imatrix: Imatrix, name: str) -> Entry | None:
    """The entry of the same tensor in the block before, if it is as large."""
    block = BLOCK.search(name)
    if not block or not int(block[1]):
        return None
    entry = imatrix.entries.get(f"{name[: block.start(1)]}{int(block[1]) - 1}{name[block.end(1) :]}")
    return entry if entry and entry.sums.size == imatrix.entries[name].sums.size else None


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else 0.0
