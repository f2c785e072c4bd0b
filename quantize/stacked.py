"""Mixture-of-experts files of early 2024, which hold each expert's matrices apart: opened as if they were stacked.

    blk.0.ffn_gate.3.weight (rows, columns)   ->   blk.0.ffn_gate_exps.weight (experts, rows, columns)

llama.cpp wrote the first until April 2024 and can no longer load it. Rows lie one after the other in either, so that a
stack is its parts' bytes in their order.
Source: llama.cpp#6387 (one tensor for all the experts).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from gguf.constants import Keys

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.positional import Buffer, as_bytes
from ggufsmith.container.reader import Gguf, TensorInfo
from ggufsmith.container.shards import GgufSet

EXPERT = re.compile(r"(blk\.\d{1,6}\.ffn_(?:gate|down|up))\.(\d{1,6})\.weight")
Part = tuple[Gguf, TensorInfo]
AGAIN = "Download the file again, or convert the original model again."


@dataclass(frozen=True)
class StackedSet(GgufSet):
    """Files of one model with stacks of tensors. stacks: what each is made of, by its name."""

    stacks: Mapping[str, tuple[Part, ...]]

    def read_into(self, tensor: TensorInfo, start: int, buffer: Buffer) -> None:
        """See `Gguf.read_into`."""
        parts = self.stacks.get(tensor.name)
        if parts is None:
            return super().read_into(tensor, start, buffer)
        view, each = as_bytes(buffer), parts[0][1].nbytes
        while len(view):
            number, place = divmod(start, each)
            file, info = parts[number]
            count = min(len(view), each - place)
            file.read_into(info, place, view[:count])
            view, start = view[count:], start + count
        return None


def stack_experts(files: GgufSet) -> tuple[GgufSet, tuple[str, ...]]:
    """The same files with the matrices of single experts stacked, and a sentence about it; unchanged if none are.

    Malformed: experts that are missing or of different shapes, or a stack that is there already. Unsupported: experts
    of different types, which one tensor cannot hold.
    """
    found: dict[str, dict[int, TensorInfo]] = {}
    for name, info in files.tensors.items():
        if expert := EXPERT.fullmatch(name):
            found.setdefault(f"{expert[1]}_exps.weight", {})[int(expert[2])] = info
    if not found:
        return files, ()
    count = _count(files)
    infos = {name: _stacked(files, name, experts, count) for name, experts in found.items()}
    stacks = {
        name: tuple((files.file_of(experts[number]), experts[number]) for number in range(count))
        for name, experts in found.items()
    }
    opened = []
    for file in files.files:
        whole = {name: info for name, info in file.tensors.items() if not EXPERT.fullmatch(name)}
        begun = {name: infos[name] for name, parts in stacks.items() if parts[0][0] is file}
        opened.append(replace(file, tensors=MappingProxyType({**whole, **begun})))
    home = {name: file for file in opened for name in file.tensors}
    tensors = {name: info for file in opened for name, info in file.tensors.items()}
    note = (
        f"{count * len(found)} matrices of single experts are stacked into {len(found)}, as llama.cpp now expects them"
    )
    stacked = StackedSet(files.path, tuple(opened), files.metadata, MappingProxyType(tensors), home, stacks)
    return stacked, (note,)


def _count(files: GgufSet) -> int:
    """How many experts the keys give the model."""
    architecture = files.metadata.get(Keys.General.ARCHITECTURE)
    key = Keys.LLM.EXPERT_COUNT.format(arch=architecture.data if architecture is not None else "")
    count = files.metadata.get(key)
    if count is None or not isinstance(count.data, int) or count.data <= 0:
        raise Malformed(
            f"the file has matrices of experts, but {key} does not say how many", where=files.path, fix=AGAIN
        )
    return count.data


def _stacked(files: GgufSet, name: str, experts: Mapping[int, TensorInfo], count: int) -> TensorInfo:
    """The stack's record. Its offset is that of its first part."""
    where = f"{files.path}: {name}"
    missing = sorted(set(range(count)) - experts.keys())
    if missing or len(experts) != count or name in files.tensors:
        what = "the stack exists as well" if name in files.tensors else f"{len(experts)} experts of {count}"
        raise Malformed(f"{what}, in tensors of single experts", where=where, fix=AGAIN)
    formats = {info.format.name for info in experts.values()}
    if len({info.shape for info in experts.values()}) > 1:
        raise Malformed("its experts have different shapes", where=where, fix=AGAIN)
    if len(formats) > 1:
        raise Unsupported(
            f"its experts have different types ({', '.join(sorted(formats))}), which one tensor cannot hold",
            where=where,
            fix="Convert the original model again.",
        )
    first = experts[0]
    return TensorInfo(name, (count, *first.shape), first.format, first.offset, count * first.nbytes)
