"""Tensors of one number each that GGUF keeps among its keys, one list for all blocks: the xIELU parameters of Apertus.

Forward they are read from the checkpoint; backward they are tensors again.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ggufsmith.container.errors import Malformed
from ggufsmith.container.typed import TypedKeys
from ggufsmith.container.values import Metadata, array, f32s
from ggufsmith.convert.architecture import Listed, Number
from ggufsmith.convert.dequantize.scheme import read_f32
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.ops import Constant
from ggufsmith.convert.stored import Checkpoint, StoredTensor

Numbers = Mapping[str, tuple[StoredTensor, ...]]
"""By key, the tensors of every block."""
LISTS = ("I64", "I32")  # dtypes of whole numbers


def set_aside(
    wanted: Sequence[Number], blocks: int, tensors: Mapping[str, StoredTensor], problems: list[str]
) -> tuple[Mapping[str, StoredTensor], Numbers]:
    """The tensors without those of one number, and these; `problems` is told what is missing or has another shape."""
    if not wanted or not tensors:
        return tensors, {}
    rest, found = dict(tensors), dict[str, tuple[StoredTensor, ...]]()
    for number in wanted:
        pattern = re.compile(f"(.*\\.)?layers\\.([0-9]{{1,9}})\\.{re.escape(number.name)}")
        matches = ((match, source) for name, source in tensors.items() if (match := pattern.fullmatch(name)))
        by_block = {int(match[2]): source for match, source in matches}
        for source in by_block.values():
            del rest[source.name]
            if source.shape not in ((), (1,)):
                problems.append(f"{source.name}: shape {list(source.shape)}, but it must be one number")
        if by_block.keys() != set(range(blocks)):
            missing = sorted(set(range(blocks)) - by_block.keys())
            problems.append(
                f"{number.key}: {len(by_block)} blocks of {blocks} have {number.name}, missing {missing[:8]}"
            )
        else:
            found[number.key] = tuple(by_block[block] for block in range(blocks))
    return rest, found


def lists_aside(
    wanted: Sequence[Listed], tensors: Mapping[str, StoredTensor], problems: list[str]
) -> tuple[Mapping[str, StoredTensor], Mapping[str, StoredTensor]]:
    """The tensors without those of whole numbers, and these, by key; `problems` is told which have another shape."""
    rest, found = dict(tensors), dict[str, StoredTensor]()
    for each in wanted:
        for source in [source for source in rest.values() if source.name.endswith(each.suffix)]:
            del rest[source.name]
            if each.key in found:
                problems.append(f"{source.name}: {found[each.key].name} has the same key")
            if len(source.shape) != 1 or source.dtype not in LISTS:
                problems.append(f"{source.name}: it must be a list of {' or '.join(LISTS)}, not {source.dtype}")
            found[each.key] = source
    return rest, found


def read_lists(checkpoint: Checkpoint, lists: Mapping[str, StoredTensor]) -> Metadata:
    """Their keys, arrays of unsigned 64-bit integers. Malformed: a number below 0."""
    made: Metadata = {}
    if not lists:
        return made
    with checkpoint:
        store = Store(checkpoint)
        for key, source in lists.items():
            values = store.whole(source).astype(np.int64)
            if values.size and values.min() < 0:
                raise Malformed(f"a number is {values.min()}", where=f"{checkpoint.folder}: {source.name}")
            made[key] = array(values.astype(np.uint64))
    return made


def read_numbers(checkpoint: Checkpoint, numbers: Numbers) -> Metadata:
    """Their keys, arrays of float32. Malformed: a number that is not finite."""
    made: Metadata = {}
    if not numbers:
        return made
    with checkpoint:
        store = Store(checkpoint)
        for key, sources in numbers.items():
            values = np.empty((len(sources), 1), np.float32)
            for block, source in enumerate(sources):
                read_f32(store, source, 0, 1, values[block : block + 1])
                if not np.isfinite(values[block, 0]):
                    raise Malformed(f"the number is {values[block, 0]}", where=f"{checkpoint.folder}: {source.name}")
            made[key] = f32s(values[:, 0])
    return made


def number_sources(wanted: Sequence[Number], blocks: int) -> list[StoredTensor]:
    """What a checkpoint has of them, as headers in float32."""
    names = ((f"model.layers.{block}.{number.name}", number.shape) for number in wanted for block in range(blocks))
    return [StoredTensor(name, shape, "F32", Path(), 0, 4) for name, shape in names]


def constants(numbers: Numbers, metadata: Metadata, where: object) -> list[tuple[StoredTensor, Constant]]:
    """Each of them, made of the keys of a file. Malformed: a key is missing, or holds no such list."""
    found: list[tuple[StoredTensor, Constant]] = []
    for key, sources in numbers.items():
        values = TypedKeys(metadata, where).numbers(key, np.float32, len(sources))
        if values is None:
            raise Malformed("the key is missing", where=f"{where}: {key}")
        found += [(source, Constant((float(value),))) for source, value in zip(sources, values, strict=True)]
    return found
