"""An adapter as a GGUF adapter: two tensors for every updated weight, ordered, and their rows too, as in the model.

llama.cpp computes W x + s * alpha / rank * B (A x), with one alpha for the whole file and s chosen by the user. What
single weights have beyond that alpha (rslora, alpha patterns) is multiplied into their B.
Source: llama.cpp, src/llama-adapter.cpp, src/llama-adapter.h (get_scale), convert_lora_to_gguf.py.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from gguf.constants import GGUFType, Keys
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.text import shell_command
from ggufsmith.container.values import Metadata, array, f32, string
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.config import Config
from ggufsmith.convert.dequantize.narrowed import narrowed
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.dequantize.store import Store, to_f32
from ggufsmith.convert.lora.merge import EMBEDDING, HEAD
from ggufsmith.convert.lora.peft import Adapter, Update, without_dropped
from ggufsmith.convert.ops import Array, Copy, Op, Read, Shape, Stack
from ggufsmith.convert.plan import Plan, TensorPlan, find_architecture, make_plan
from ggufsmith.convert.stored import StoredTensor

ONE = 'If the embedding and the head were trained as one, say so in adapter_config.json: "ensure_weight_tying": true.'


@dataclass(frozen=True)
class Transpose(Op):
    """Rows become columns; every chunk reads the whole source, so it makes but one."""

    def shape(self, *sources: Shape) -> Shape:
        return sources[0][::-1]

    def granule(self, *sources: Shape) -> int:
        return sources[0][1]

    def rows(self, read: Read, sources: tuple[Shape, ...], start: int, stop: int) -> Array:
        turned: Array = np.ascontiguousarray(read(0, 0, sources[0][0])[:, start:stop].T)
        return turned


@dataclass(frozen=True)
class Scaled:
    """A stored matrix times a number, in float32."""

    source: StoredTensor
    factor: float

    granule = 1

    @property
    def shape(self) -> Shape:
        """See `Weights.shape`."""
        return self.source.shape

    @property
    def nominal(self) -> str:
        """See `Weights.nominal`."""
        return self.source.dtype

    def rows(self, store: Store, first: int, last: int, out: NDArray[np.float32]) -> None:
        """See `Weights.rows`."""
        np.multiply(to_f32(store.rows(self.source, first, last), self.source.dtype), np.float32(self.factor), out=out)


def plan_adapter(adapter: Adapter, base: Path, config: Config) -> Plan:
    """The tensors and the keys of the GGUF adapter. base, config: the base model's folder, which may lack the weights.

    Unsupported: what a GGUF adapter cannot express. Malformed: an adapter of another base.
    """
    record = find_architecture(config)
    adapter = without_dropped(adapter, record)
    _check_expressible(adapter, config, record, _shares_head(base, config))
    updates = {update.target: update for update in adapter.updates}
    weights = {name: StoredTensor(name, update.shape, "F32", adapter.folder, 0, 0) for name, update in updates.items()}
    try:
        plan = make_plan(config, weights, partial=True)
    except Unsupported as failure:
        raise Malformed(
            "this adapter does not fit its base", where=adapter.folder, also=failure.also, fix=f"Base: {config.path}"
        ) from None
    placed = {source.name for output in plan.outputs for source in output.sources}
    if placed != set(updates):
        lost = sorted(set(updates) - placed)
        raise Unsupported(f"it updates {lost[0]}, which llama.cpp does not have for this model", where=adapter.folder)
    alpha = _alpha(adapter)
    outputs = [part for output in plan.outputs for part in _pair(output, updates, alpha, adapter)]
    metadata: Metadata = {
        Keys.General.TYPE: string(GGUFType.ADAPTER),
        Keys.Adapter.TYPE: string("lora"),
        Keys.Adapter.LORA_ALPHA: f32(alpha),
    }
    tokens = adapter.config.first("alora_invocation_tokens")
    if tokens:
        if not isinstance(tokens, list) or not all(isinstance(token, int) and 0 <= token < 1 << 32 for token in tokens):
            raise Malformed(f"alora_invocation_tokens is {tokens!r}, not token ids", where=adapter.config.path)
        metadata[Keys.Adapter.ALORA_INVOCATION_TOKENS] = array(np.array(tokens, np.uint32))
    return replace(plan, outputs=tuple(outputs), metadata=metadata, notes=adapter.notes)


def _shares_head(base: Path, config: Config) -> bool:
    """Whether the embedding is the head as well: the tensors say, else the config."""
    if any(base.glob("*.safetensors")):
        return HEAD not in open_checkpoint(base).tensors
    return bool(config.with_defaults(find_architecture(config).defaults).first("tie_word_embeddings"))


def _check_expressible(adapter: Adapter, config: Config, record: Architecture, shares_head: bool) -> None:
    parted = _parted(adapter) if record.tied else None
    if parted is not None:
        raise Unsupported(
            f"it trains {parted}, but llama.cpp reads one tensor for embedding and head in {record.name} models",
            where=adapter.folder,
            fix=f"Merging it is refused for the same reason: train it without {parted}."
            + (f" {ONE}" if parted == EMBEDDING else ""),
        )
    whole = sorted(adapter.trained)
    grown = sorted(name for name, copy in adapter.copies.items() if copy.shape[0] != config.first("vocab_size"))
    dora = [update.target for update in adapter.updates if update.magnitude is not None]
    biased = [update.target for update in adapter.updates if update.bias is not None]
    shared = [update.target for update in adapter.updates if update.embedding or update.target == HEAD]
    for names, what in (
        (whole, "a tensor trained whole"),
        (grown, "a vocabulary of another size"),
        (dora, "an update by DoRA"),
        (biased, "an update with a bias"),
        (sorted(adapter.tokens), "single trained rows"),
        (shared if shares_head else [], "an update of an embedding that is also the head"),
    ):
        if names:
            raise Unsupported(
                f"a GGUF adapter cannot hold {what}, and {names[0]} is one",
                where=adapter.folder,
                fix=_merging(adapter),
            )


def _merging(adapter: Adapter) -> str:
    """The way out of what a GGUF adapter cannot hold."""
    return f"Merge it into the base instead: {shell_command('gguf-convert', 'BASE', '--lora', adapter.folder)}"


def _parted(adapter: Adapter) -> str | None:
    """The embedding or the head, if the adapter's forward makes a difference between the two."""
    trained = {update.target for update in adapter.updates} | set(adapter.trained)
    head = next((name for name in trained if name.endswith(HEAD)), None)
    embedding = next((name for name in trained if name.endswith(EMBEDDING.removeprefix("model."))), None)
    if head is not None and head not in adapter.trained:
        return HEAD
    tied = adapter.config.first("ensure_weight_tying")
    return EMBEDDING if embedding is not None and head is None and not tied else None


def _alpha(adapter: Adapter) -> float:
    """What llama.cpp divides by the rank, for as many weights as possible."""
    found = Counter(update.scale * update.rank for update in adapter.updates)
    alpha = found.most_common(1)[0][0]
    if not math.isfinite(alpha) or np.float32(alpha) == 0:
        raise Unsupported(f"llama.cpp would apply an alpha of {alpha} as a factor of one", where=adapter.config.path)
    return alpha


def _pair(output: TensorPlan, updates: Mapping[str, Update], alpha: float, adapter: Adapter) -> list[TensorPlan]:
    """lora_a and lora_b of one weight: its op moves rows, which are those of B."""
    found = [updates[source.name] for source in output.sources]
    if not output.op.whole_rows:
        raise Unsupported(
            f"{output.name} is not made of whole rows of {found[0].target}, and a GGUF adapter holds no other update",
            where=adapter.folder,
            fix=_merging(adapter),
        )
    down, up = [narrowed(update.down) for update in found], [narrowed(_scaled(update, alpha)) for update in found]
    gather: Op = Stack() if isinstance(output.op, Stack) else Transpose() if found[0].embedding else Copy()
    op: Op = Copy() if found[0].embedding else output.op
    pair = []
    for end, how, sources in (("lora_a", gather, down), ("lora_b", op, up)):
        if len({(source.shape, source.dtype) for source in sources}) != 1:
            raise Unsupported(
                f"{output.name}: experts of different rank or dtype cannot be stacked",
                where=adapter.folder,
                fix=_merging(adapter),
            )
        pair.append(
            TensorPlan(
                f"{output.name}.{end}", how.shape(*(source.shape for source in sources)), how, tuple(sources), False
            )
        )
    return pair


def _scaled(update: Update, alpha: float) -> StoredTensor:
    up, factor = update.up, update.scale * update.rank / alpha
    if factor == 1:
        return up
    return DequantizedTensor(up.name, up.shape, "F32", up.path, 0, up.nbytes, Scaled(up, factor), (up,))
