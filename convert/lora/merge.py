"""Adapters merged into a checkpoint: rows of updated weights are made when they are read.

    weight' = W + scale * B @ A,  and with DoRA  magnitude / |weight'| * weight',  in float32

for one adapter after the other, the lengths |weight'| always those of the base with this adapter alone. An updated
weight is one more `DequantizedTensor`, so that plan, ops and streaming need not know. What peft's forward computes
counts, also where its merge_and_unload does not: an embedding that is updated apart from the head that shares its
weights becomes two tensors.
Source: peft 0.21, tuners/lora/layer.py (get_delta_weight), variants.py (DoraLinearVariant, DoraEmbeddingVariant).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.layout import rows_of
from ggufsmith.convert.dequantize.scheme import DequantizedTensor, Shape, read_f32
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.lora.peft import Adapter, apart
from ggufsmith.convert.lora.steps import Floats, LowRank, Rows, Shift, Step, floats
from ggufsmith.convert.names import plain_name
from ggufsmith.convert.plan import EXPERT, Plan, TensorPlan
from ggufsmith.convert.stored import Checkpoint, LocalFiles, Opener, Reader, StoredTensor
from ggufsmith.pipeline.stream import CHUNK

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MAX_PROBLEMS = 40


@dataclass(frozen=True)
class Updated:
    """A weight of the base, or a trained one, under low-rank updates in turn."""

    base: StoredTensor
    steps: tuple[Step, ...]

    @property
    def shape(self) -> Shape:
        """See `Weights.shape`."""
        return self.base.shape

    @property
    def granule(self) -> int:
        """See `Weights.granule`."""
        return self.base.granule

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return self.base.nominal

    def rows(self, store: Store, first: int, last: int, out: Floats) -> None:
        """See `Weights.rows`."""
        read_f32(store, self.base, first, last, out)
        for k, step in enumerate(self.steps):
            step.apply(store, first, last, out)
            if not isinstance(step, LowRank) or step.update.magnitude is None:
                continue
            magnitude = step.update.magnitude
            lengths = floats(magnitude, store.whole(magnitude)).reshape(-1)
            if step.turned:
                out *= lengths / self._column_norms(store, step)
            else:
                alone = out if k == 0 else self._alone(store, step, first, last)
                out *= (lengths[first:last] / _row_norms(alone))[:, None]

    def _alone(self, store: Store, step: LowRank, first: int, last: int) -> Floats:
        """The base under this update only."""
        rows = np.empty((last - first, self.shape[-1]), np.float32)
        read_f32(store, self.base, first, last, rows)
        step.apply(store, first, last, rows)
        return rows

    def _column_norms(self, store: Store, step: LowRank) -> Floats:
        """The length of every column, which takes a pass over the whole weight."""

        def make() -> Floats:
            from ggufsmith.quantize.kernels.products import add_column_squares

            rows, width = rows_of(self.shape)
            squares, each = np.zeros(width), max(CHUNK // width, 1)
            for first in range(0, rows, each):
                add_column_squares(self._alone(store, step, first, min(first + each, rows)).reshape(-1), width, squares)
            return np.sqrt(squares).astype(np.float32)

        return store.kept((step.update.down.name, "norms"), self.shape[-1] * 4, make)


def _row_norms(rows: Floats) -> Floats:
    from ggufsmith.quantize.kernels.products import row_squares

    squares = np.empty(len(rows))
    row_squares(np.ascontiguousarray(rows).reshape(-1), rows.shape[1], squares)
    return np.sqrt(squares).astype(np.float32)


@dataclass(frozen=True)
class _Opening:
    """Opens the base's files, wherever they are, and the adapters', `local`, on the disk."""

    open_base: Opener
    local: frozenset[Path]

    @property
    def remote(self) -> Collection[Path]:
        return self.open_base.remote

    def __call__(self, paths: Sequence[Path]) -> Reader:
        base = self.open_base([path for path in paths if path not in self.local])
        return _Beside(base, LocalFiles([path for path in paths if path in self.local]), self.local)


class _Beside:
    """A reader of both."""

    def __init__(self, base: Reader, adapters: Reader, local: frozenset[Path]) -> None:
        self._base, self._adapters, self._local = base, adapters, local

    def expect(self, extents: Iterable[tuple[Path, int, int]]) -> None:
        self._base.expect(extent for extent in extents if extent[0] not in self._local)

    def read_into(self, path: Path, offset: int, buffer: memoryview) -> int:
        return (self._adapters if path in self._local else self._base).read_into(path, offset, buffer)

    def close(self) -> None:
        self._base.close()
        self._adapters.close()


# -- which weights ----------------------------------------------------------------------------------------------------


class _Changes:
    """What adapters do to a base, by the base's names.

    base:    its tensors, those of a vocabulary that has grown since included.
    trained: the tensors that take the place of others. steps: the changes of each weight, in turn.
    """

    def __init__(self, base: Mapping[str, StoredTensor]) -> None:
        self.base = dict(base)
        self.trained: dict[str, StoredTensor] = {}
        self.steps: dict[str, list[Step]] = {}
        self.names = {_plain(name): name for name in base}
        self.embedding = self.names.get(_plain(EMBEDDING), EMBEDDING)

    @property
    def touched(self) -> frozenset[str]:
        return frozenset({**self.trained, **self.steps})

    def name(self, found: str) -> str:
        return self.names.get(_plain(found), found)

    def before(self, name: str) -> StoredTensor | None:
        """The tensor of the base; a head that is not there is the embedding."""
        return self.base.get(name) or (self.base.get(self.embedding) if name == HEAD else None)

    def add(self, adapter: Adapter, factor: float) -> Iterator[str]:
        """Take in one adapter, and say what does not fit."""
        for found, source in adapter.copies.items():
            name = self.name(found)
            old = self.before(name)
            if old is None or not self._fits(name, old, source):
                yield f"{found}: a copy of {list(source.shape)} in the adapter, {_shape(old)} in the base"
            elif old.shape != source.shape:
                self.base[name] = replace(source, name=name)
        for found, source in adapter.trained.items():
            name = self.name(found)
            old = self.before(name)
            if name in self.trained:
                raise Usage(f"two adapters hold a trained {found}", where=adapter.folder, fix="Merge one of them.")
            if old is not None and not self._fits(name, old, source):
                yield f"{found}: trained as {list(source.shape)}, {_shape(old)} in the base"
            self.trained[name] = replace(source, name=name)  # the plan judges what the base lacks
        for update in adapter.updates:
            name = self.name(update.target)
            old = self.trained.get(name) or self.before(name)
            shape = None if old is None else old.shape
            turned = adapter.config.first("fan_in_fan_out") and shape == update.shape[::-1] != update.shape
            if shape != update.shape and not turned:
                yield f"{update.target}: an update of {list(update.shape)} in the adapter, {_shape(old)} in the base"
                continue
            update = apart(update, adapter.folder)
            step = LowRank(update, factor * update.scale, bool(update.embedding or turned))
            self.steps.setdefault(name, []).append(step)
            if update.bias is not None:
                name = name.removesuffix("weight") + "bias"
                old = self.trained.get(name) or self.base.get(name)
                if old is None or old.shape != update.bias.shape:
                    yield f"{name}: lora_bias adds {list(update.bias.shape)} to it, {_shape(old)} in the base"
                self.steps.setdefault(name, []).append(Shift(update.bias, factor * update.scale))
        for found, tokens in adapter.tokens.items():
            name = self.name(found)
            old = self.trained.get(name) or self.before(name)
            if old is None or old.shape[1:] != tokens.rows.shape[1:] or max(tokens.ids) >= old.shape[0]:
                yield f"{found}: rows up to {max(tokens.ids)} of {tokens.rows.shape[1]}, {_shape(old)} in the base"
            self.steps.setdefault(name, []).append(Rows(tokens))

    def _fits(self, name: str, old: StoredTensor, new: StoredTensor) -> bool:
        """Of the same shape, or with other rows in a vocabulary that was resized."""
        return old.shape == new.shape or (name in (HEAD, self.embedding) and old.shape[1:] == new.shape[1:])

    def parts_from_head(self) -> bool:
        """Whether the embedding changes, and the head, which shared its weights, does not.

        Single rows were trained for both.
        """
        if HEAD in self.base or HEAD in self.touched or self.embedding not in self.touched:
            return False
        if self.embedding not in self.trained and all(isinstance(s, Rows) for s in self.steps[self.embedding]):
            return False
        trained = self.trained.get(self.embedding)
        return trained is None or trained.shape == self.base[self.embedding].shape


def merge(checkpoint: Checkpoint, adapters: Sequence[tuple[Adapter, float]]) -> tuple[Checkpoint, frozenset[str]]:
    """The checkpoint with the adapters merged in, each under a factor, and the names of the tensors they changed.

    Malformed: an adapter of another base, with all that does not fit. Usage: adapters that exclude each other.
    Unsupported: an adapter that works for a part of the prompt only.
    """
    notes = list(checkpoint.notes)
    changes = _Changes(checkpoint.tensors)
    for adapter, factor in adapters:
        if adapter.config.first("alora_invocation_tokens"):
            raise Unsupported(
                "an activated LoRA takes effect only after its invocation tokens, so it cannot be merged",
                where=adapter.folder,
                fix="Convert the adapter alone: llama.cpp turns it on where they appear.",
            )
        problems = list(changes.add(adapter, factor))
        if problems:
            raise Malformed(
                f"this adapter does not fit the base {checkpoint.folder.name}",
                where=adapter.folder,
                also=problems[:MAX_PROBLEMS],
                fix=f"Its configuration names the base {adapter.base}." if adapter.base else None,
            )
        notes += [_note(adapter, factor), *adapter.notes]
    tensors = {**changes.base, **changes.trained}
    if changes.parts_from_head() and not any(adapter.config.first("ensure_weight_tying") for adapter, _ in adapters):
        tensors[HEAD] = replace(changes.base[changes.embedding], name=HEAD)
        notes.append(
            f"{HEAD} keeps the base's embeddings, but the adapter changes the embeddings themselves; they "
            f"are now two different tensors"
        )
    stacks = {EXPERT.sub(".experts.", name) for name in changes.touched if EXPERT.search(name)}
    for name in {**tensors, **changes.steps}:
        if name in changes.steps or EXPERT.sub(".experts.", name) in stacks:  # a stack is of one dtype
            old = tensors.get(name) or changes.before(name)
            if old is not None:
                tensors[name] = _made(name, Updated(old, tuple(changes.steps.get(name, ()))))
    open_files = _Opening(checkpoint.open_files, frozenset(adapter.path for adapter, _ in adapters))
    return replace(checkpoint, tensors=tensors, notes=tuple(notes), open_files=open_files), changes.touched


def _made(name: str, weights: Updated) -> DequantizedTensor:
    base = weights.base
    parts = (*base.stored, *(part for step in weights.steps for part in step.sources))
    return DequantizedTensor(name, base.shape, "F32", base.path, 0, sum(part.nbytes for part in parts), weights, parts)


def _plain(name: str) -> str:
    """Names with and without these are the same tensor (see plan._places)."""
    return plain_name(name).removeprefix("model.")


def _shape(source: StoredTensor | None) -> str:
    return "nothing" if source is None else str(list(source.shape))


def _note(adapter: Adapter, factor: float) -> str:
    parts = [f"{len(adapter.updates)} low-rank updates{'' if factor == 1 else f' times {factor:g}'}"]
    if adapter.tokens:
        parts.append(f"{sum(len(tokens.ids) for tokens in adapter.tokens.values())} rows of an embedding")
    if adapter.trained:
        parts.append(f"{len(adapter.trained)} tensors trained whole{'' if factor == 1 else ', unchanged'}")
    return f"merged {adapter.folder.name}: {', '.join(parts)}"


def check_used(touched: frozenset[str], plan: Plan, more: Iterable[TensorPlan] = ()) -> None:
    """Unsupported if the plan drops a tensor that an adapter changed; `redundant` judges those that have a twin.

    more: what else is made of the checkpoint.
    """
    used = {source.name for output in (*plan.outputs, *more) for source in output.sources}
    lost = sorted(touched - used - {each.source.name for each in plan.left_out if each.twin is not None})
    if lost:
        raise Unsupported(
            f"an adapter changes {lost[0]}, which {plan.architecture.name} in llama.cpp does not have",
            also=lost[1:MAX_PROBLEMS],
        )
