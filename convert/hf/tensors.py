"""The tensors of a Hugging Face checkpoint, made from those of a GGUF file by the inverse ops.

There is no second plan: the names and shapes that the checkpoint would have go through `make_plan`, as if it were to be
converted. What that plan would make must be the GGUF file; each of its outputs, inverted, makes its own sources.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import MODEL_TENSOR

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import rows_of
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet
from ggufsmith.convert.architecture import Dims, TensorRule
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import base_name
from ggufsmith.convert.hf.classes import HfClass
from ggufsmith.convert.hf.rope import FACTORS
from ggufsmith.convert.invert import inverses
from ggufsmith.convert.numbers import constants, number_sources
from ggufsmith.convert.ops import Array, Op
from ggufsmith.convert.plan import SOURCE_FORMATS, Plan, TensorPlan, make_plan, source_shape
from ggufsmith.convert.stacks import counted_anew
from ggufsmith.convert.stored import StoredTensor
from ggufsmith.pipeline.stream import Scratch
from ggufsmith.quantize.rows import decode
from ggufsmith.quantize.tensors import GgufTensor

F16, F32 = BY_NAME["F16"], BY_NAME["F32"]
BLOCK = re.compile(r"blk\.(\d{1,6})\.")
NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Restored:
    """A tensor of the checkpoint, to be streamed (see `stream.RowSource`).

    format: what it is stored in. parts: the GGUF tensors that `transform` makes it from; none, if it was in a key.
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    parts: tuple[GgufTensor, ...]
    transform: Op

    @property
    def held(self) -> Format:
        """That of its parts, as long as their rows stay whole; F32 where an op computes or takes rows apart."""
        if not self.parts:
            return F32
        first = self.parts[0].held
        alike = all(part.held is first for part in self.parts)
        kept = alike and not self.transform.computes and (first.plain or self.transform.whole_rows)
        return first if kept else F32

    @property
    def granule(self) -> int:
        """See `RowSource.granule`."""
        return self.transform.granule(*self._shapes)

    @property
    def origin(self) -> str:
        """See `RowSource.origin`."""
        return f"{self.name} (from {' and '.join(part.origin for part in self.parts[:2])})"

    @property
    def sources(self) -> tuple[str, ...]:
        """See `RowSource.sources`."""
        return tuple(name for part in self.parts for name in part.sources)

    @property
    def op(self) -> str:
        """See `RowSource.op`."""
        return type(self.transform).__name__

    @property
    def fingerprint(self) -> bytes:
        """See `RowSource.fingerprint`."""
        return fingerprint(self.name, self.shape, self.format, [p.fingerprint for p in self.parts], self.transform)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        return tuple(part.info.shape for part in self.parts)

    def rows(self, start: int, stop: int, scratch: Scratch) -> Array:
        """See `RowSource.rows`."""

        def read(k: int, first: int, last: int) -> Array:
            part = self.parts[k]
            rows = part.rows(first, last, scratch)
            if part.held is self.held:
                return rows
            width = rows_of(part.info.shape)[1]
            wide = scratch.take((last - first) * width * 4).view(np.float32).reshape(last - first, width)
            decode(part.held, rows, wide)
            return wide

        return self.transform.rows(read, self._shapes, start, stop)


def restore(
    known: HfClass, config: Mapping[str, Any], model: GgufSet, format: Format | None, where: Path
) -> tuple[Plan, tuple[Restored, ...]]:
    """The plan of converting the checkpoint, and the checkpoint's tensors in its order.

    format: of every tensor; None keeps F32, F16 and BF16 as they are, and stores quantized weights in F16.
    where:  what errors of the plan call the config.

    Unsupported or Malformed: tensors that the class does not have, that it lacks, or of another shape.
    """
    dims = make_plan(Config(config, where), None).dims
    sources = [*_sources(known, dims, model, format), *number_sources(known.record.numbers, dims.blocks)]
    plan = make_plan(Config(config, where), {source.name: source for source in sources})
    infos = {output.name: _info(model, output, where) for output in plan.outputs if output.sources}
    restored = []
    for source, outputs, op in inverses(plan.outputs):
        parts = tuple(GgufTensor(model, infos[each.name], each.name) for each in outputs)
        restored.append(Restored(source.name, source.shape, SOURCE_FORMATS[source.dtype], parts, op))
    for source, op in constants(plan.numbers, model.metadata, where):
        restored.append(Restored(source.name, source.shape, format or F32, (), op))
    return plan, tuple(restored)


def _info(model: GgufSet, output: TensorPlan, where: Path) -> TensorInfo:
    """What the file has for an output, in the plan's shape: files do not keep a leading axis of one."""
    info = model.tensors.get(output.name)
    if info is None or _shape(info.shape) != _shape(output.shape):
        found = "is missing" if info is None else f"has the shape {list(info.shape)}"
        raise Malformed(
            f"the tensor {found}; the model's keys require {list(output.shape)}", where=f"{where}: {output.name}"
        )
    if len(info.shape) == 1 and not info.format.plain:
        raise Unsupported(f"a vector in {info.format.name} cannot be read", where=f"{where}: {info.name}")
    return replace(info, shape=output.shape)


def _sources(known: HfClass, dims: Dims, model: GgufSet, format: Format | None) -> Iterator[StoredTensor]:
    """What the checkpoint holds, by the names of the GGUF's tensors."""
    # Of several rules for a tensor, the first is that of its weight.
    rules = {base_name(rule.tensor).removeprefix("blk.{bid}."): rule for rule in reversed(known.record.tensors)}
    whole = {part: name for name, parts in known.sources.items() for part in parts}
    blocks: dict[str, set[str]] = {}
    unknown, made = [], set[str]()
    for info in model.tensors.values():
        if info.name in FACTORS:
            continue  # made from the config
        number = BLOCK.match(info.name)
        name = whole.get(BLOCK.sub("blk.{bid}.", info.name))
        match = NAME.fullmatch(info.name)
        rule = rules.get(match[2]) if match else None
        if rule is not None and rule.made:
            continue
        if name is not None:
            name = counted_anew(known.record, name.format(bid=number[1] if number else ""), dims.blocks)
            shape = source_shape(known.record, dims, name)
            if shape is not None and name not in made:
                made.add(name)
                yield _stored(name, shape, info, format)
        elif match is None or rule is None or not _placed(rule, match[1]) or known.tensor_name(rule.tensor) is None:
            unknown.append(info.name)
        else:
            if match[1] is not None:
                blocks.setdefault(match[1], set()).add(f"{match[2]}.{match[3]}")
            yield from _of(known, dims, rule, info, match[1] or "", match[3], format)
    if unknown:
        raise Unsupported(
            f"{len(unknown)} tensors do not belong to {known.name}", where=model.path, also=sorted(unknown)[:20]
        )
    fullest = max(blocks.values(), key=len, default=set())
    uneven = [f"blk.{number}.{name}" for number, names in blocks.items() for name in sorted(fullest ^ names)]
    if uneven and known.record.kinds is None:
        raise Malformed("the blocks do not have the same tensors", where=model.path, also=uneven[:20])


def _stored(name: str, shape: tuple[int, ...], info: TensorInfo, format: Format | None) -> StoredTensor:
    stored = format or (info.format if info.format.name in SOURCE_FORMATS else F16)
    return StoredTensor(name, shape, stored.name, Path(), 0, math.prod(shape) * stored.size)


def _placed(rule: TensorRule, block: str | None) -> bool:
    return ("{bid}" in base_name(rule.tensor)) == (block is not None)


def _of(
    known: HfClass, dims: Dims, rule: TensorRule, info: TensorInfo, block: str, part: str, format: Format | None
) -> Iterator[StoredTensor]:
    """The one source of a tensor, or one for each expert."""
    name = f"{known.tensor_name(rule.tensor)}.{part}"
    shape = info.shape
    if rule.tensor is MODEL_TENSOR.FFN_GATE_INP_SHEXP and len(shape) == 1:
        shape = (1, *shape)  # GGUF does not keep a leading one
    if part == rule.part:
        undo = rule.op(dims).inverse()
        with suppress(ValueError):  # a shape that does not fit, which the plan says better
            shape = undo.shape(shape) if undo is not None else shape
    count = shape[0] if rule.stacked else None
    if count is not None:
        shape = shape[1:]
    for expert in range(1 if count is None else count):
        own = counted_anew(known.record, name.format(bid=block, xid=expert), dims.blocks)
        yield _stored(own, shape, info, format)


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones."""
    return _shape(shape[1:]) if len(shape) > 1 and shape[0] == 1 else shape
