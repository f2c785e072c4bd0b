"""safetensors files as layouts that can be streamed to: one file, or shards with an index.

Source: the safetensors format description. Shards are named and listed as transformers does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.layout import Layout, TensorSpec, padded
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import ShardPlan
from ggufsmith.convert.safetensors_header import read_header

SHARD_SIZE = 5 * 10**9  # bytes of tensors; what transformers has used longest
ALIGNMENT = 8
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class WeightsPlan(ShardPlan):
    """A `ShardPlan` whose files have the names that transformers looks for."""

    def paths(self, path: Path) -> list[Path]:
        """Files in the folder `path`."""
        count = len(self.shards)
        if count == 1:
            return [path / "model.safetensors"]
        return [path / f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]

    def index(self) -> bytes | None:
        """The content of INDEX, for more than one file."""
        if len(self.shards) == 1:
            return None
        names = [path.name for path in self.paths(Path())]
        weights = {t.name: name for name, shard in zip(names, self.shards, strict=True) for t in shard.tensors}
        total = sum(tensor.nbytes for tensor in self.whole.tensors)
        listed = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
        return (json.dumps(listed, indent=2) + "\n").encode()


def plan_weights(tensors: Sequence[TensorSpec], shard_size: int = SHARD_SIZE) -> WeightsPlan:
    """As few files as their size allows, tensors in this order; a tensor larger than `shard_size` has its own."""
    groups: list[list[TensorSpec]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(t.nbytes for t in groups[-1]) + tensor.nbytes > shard_size:
            groups.append([])
        groups[-1].append(tensor)
    shards = tuple(_lay_out(group) for group in groups)
    starts = tuple(accumulate((shard.size for shard in shards[:-1]), initial=0))
    offsets = tuple(start + at for start, shard in zip(starts, shards, strict=True) for at in shard.offsets)
    whole = Layout({}, tuple(tensors), ALIGNMENT, shards[0].header, offsets, sum(shard.size for shard in shards))
    return WeightsPlan(whole, shards, starts)


def _lay_out(tensors: Sequence[TensorSpec]) -> Layout:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends = list(accumulate((tensor.nbytes for tensor in tensors), initial=0))
    for tensor, begin in zip(tensors, ends, strict=False):
        offsets = [begin, begin + tensor.nbytes]
        header[tensor.name] = {"dtype": tensor.format.name, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (padded(len(text), ALIGNMENT) - len(text))
    head = len(text).to_bytes(8, "little") + text
    return Layout({}, tuple(tensors), ALIGNMENT, head, tuple(len(head) + at for at in ends[:-1]), len(head) + ends[-1])


def stored_tensors(path: Path) -> list[TensorInfo]:
    """The tensors of a safetensors file, for the writer's check."""
    return [
        TensorInfo(source.name, source.shape, BY_NAME[source.dtype], source.offset, source.nbytes)
        for source in read_header(path)
    ]
