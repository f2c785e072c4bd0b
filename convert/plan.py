"""The plan: every output tensor of a conversion, with its shape and how its rows are made. Pure: headers in, plan out.

The completeness rule: every source tensor is used or dropped with a reason, every required output is made, every config
key is used, known to be harmless, or reported. All problems are collected and raised together.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import filterfalse, islice
from pathlib import Path

from gguf.constants import MODEL_TENSOR

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.text import nearest
from ggufsmith.container.values import FLOAT32_MAX, Metadata
from ggufsmith.convert import mtp
from ggufsmith.convert.architecture import Architecture, Dims, Need, TensorRule
from ggufsmith.convert.architectures import ARCHITECTURES, IGNORED
from ggufsmith.convert.architectures.later import refusal
from ggufsmith.convert.config import MAX_BLOCKS, Config, check_counts, made
from ggufsmith.convert.dequantize.detect import COMPANIONS
from ggufsmith.convert.gguf_names import Tensor, base_name, source_names
from ggufsmith.convert.names import plain_name
from ggufsmith.convert.numbers import Numbers, lists_aside, set_aside
from ggufsmith.convert.ops import Constant, Copy, Op, Shape, Stack, Zeros
from ggufsmith.convert.reorder import Chain, Turn
from ggufsmith.convert.rope import MAX_HEAD_DIM, partial_rotary_factor, rope_metadata
from ggufsmith.convert.slots import Slot, SlotSource, stays_f32
from ggufsmith.convert.stacks import counted_through
from ggufsmith.convert.stored import StoredTensor

SOURCE_FORMATS: Mapping[str, Format] = {name: BY_NAME[name] for name in ("F32", "F16", "BF16")}
# The type of an op's whole numbers -> those that its sources may have.
INTEGERS: Mapping[str, tuple[str, ...]] = {"I32": ("I32", "I64"), "I64": ("I64",)}
EXPERT = re.compile(r"\.experts\.([0-9]{1,9})\.")
NUMBER = re.compile("[0-9]{1,9}")  # of a layer; names come from anywhere
MAX_PROBLEMS = 40


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the GGUF file.

    keep_f32: stored in float32 whatever the output type.
    instead:  names of output types, each with that of the type which the tensor has instead.
    """

    name: str
    shape: Shape
    op: Op
    sources: tuple[StoredTensor, ...]
    keep_f32: bool
    instead: tuple[tuple[str, str], ...] = ()

    def stored_as(self, format: Format) -> Format:
        """Its type in a file whose matrices have this type; rows that are no whole number of blocks are F16."""
        if self.op.integers:
            return BY_NAME[self.op.integers]
        if self.keep_f32:
            return BY_NAME["F32"]
        found = BY_NAME[dict(self.instead).get(format.name, format.name)]
        return found if self.shape[-1] % found.weights == 0 else BY_NAME["F16"]


@dataclass(frozen=True)
class LeftOut:
    """A source that is in no output, and why. twin: the source that llama.cpp takes in its place, if there is one."""

    source: StoredTensor
    reason: str
    twin: StoredTensor | None = None


@dataclass(frozen=True)
class Plan:
    """What to write.

    metadata: the architecture's own keys. notes: what the user should know.
    left_out: sources that are in no output; whether they may be, `redundant.check_left_out` judges by their values.
    numbers:  sources that are read into keys (see `convert.numbers`). lists: those of several whole numbers each.
    appended: how many of the last blocks are for multi-token prediction.
    """

    architecture: Architecture
    dims: Dims
    outputs: tuple[TensorPlan, ...]
    metadata: Metadata
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    numbers: Numbers = field(default_factory=dict)
    lists: Mapping[str, StoredTensor] = field(default_factory=dict)
    appended: int = 0


def find_architecture(config: Config) -> Architecture:
    """The record for config.json's "architectures". Unsupported, with the nearest known class, if there is none."""
    classes = config.first("architectures")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise Malformed('"architectures" must name the model class', where=config.path)
    for name in classes:
        if name in ARCHITECTURES:
            record = ARCHITECTURES[name]
            inside = record.variant(config)
            return record.variants.get(inside, record) if isinstance(inside, str) else record
    supported = ", ".join(record.classes[0] for record in ARCHITECTURES.records())
    raise Unsupported(refusal(classes, ARCHITECTURES), where=config.path, fix=f"Supported: {supported}.")


def make_plan(
    config: Config,
    tensors: Mapping[str, StoredTensor] | None,
    *,
    partial: bool = False,
    drop_mtp: bool = False,
    taken: Callable[[str], bool] | None = None,
) -> Plan:
    """The whole conversion; without tensors, only what the config says (a file that holds the vocabulary alone).

    partial:  the tensors are some of the model's, as in an adapter; the config alone gives the dimensions.
    drop_mtp: leave out the appended blocks for multi-token prediction (see `convert.mtp`).
    taken:    whether a tensor is in another file that is made, so that it is not lost.

    Unsupported or Malformed lists everything that stands in the way of a faithful conversion.
    """
    record = find_architecture(config)
    check_counts(config)  # by the names that its author knows
    check_counts(config := config.renamed(record.aliases).with_defaults(record.defaults))
    config = config.replaced(record.derived(config)) if record.derived else config
    problems: list[str] = []
    listed = record.sizes.get("blocks")
    blocks = listed(config) if listed else config.integer("num_hidden_layers", "n_layers")
    if blocks is None or not 0 < blocks <= MAX_BLOCKS:
        raise Malformed(f"num_hidden_layers must be 1 to {MAX_BLOCKS}, not {blocks}", where=config.path)
    if drop_mtp and record.predicts:
        drop = {**record.drop, "mtp.": mtp.DROPPED}
        record = replace(record, mtp=None, appended=False, drop=drop, beyond=mtp.DROPPED)
    appended = mtp.count(record, tensors or {}, blocks)
    if tensors is None and record.predicts:
        appended = max(config.integer("mtp_num_hidden_layers", "num_nextn_predict_layers", default=0) or 0, 0)
    announced = None if partial or tensors is None else mtp.note(record, config, appended)
    rest, numbers = set_aside(() if partial else record.numbers, blocks, tensors or {}, problems)
    rest, lists = lists_aside(() if partial else record.listed, rest, problems)
    slots, left_out = _assign(record, blocks, blocks + appended, rest, problems)
    if left_out and not slots and not partial:
        raise Unsupported(
            f"this checkpoint holds no tensor of a language model, only {left_out[0].reason.partition(';')[0]}",
            where=config.path.parent,
            fix="Use the checkpoint of the whole model.",
        )
    dims = _dimensions(record, config, blocks + appended, {} if partial else slots)
    rope_keys, generated, rope_notes = rope_metadata(config, record.rope, dims)
    outputs: list[TensorPlan] = []
    if tensors is not None and not partial:
        outputs += [
            TensorPlan(Slot(tensor, None, "weight").name, (len(values),), Constant(values), (), True)
            for tensor, values in generated.items()
        ]
    if tensors is not None:
        outputs += _outputs(record, dims, slots, problems, partial)
    _check_config(record, config, dims, problems)
    metadata = _metadata(record, config, dims, problems)
    metadata.update({key.format(arch=record.name): value for key, value in rope_keys.items()})
    if problems:
        raise Unsupported(
            f"this {record.classes[0]} checkpoint cannot be converted faithfully; problems found: {len(problems)}",
            where=config.path.parent,
            also=[
                *problems[:MAX_PROBLEMS],
                *([f"and {len(problems) - MAX_PROBLEMS} more"][: len(problems) > MAX_PROBLEMS]),
            ],
            fix="Check that the tensors and config.json belong to the same model. If they do, this variant is not "
            "supported.",
        )
    lost = (each for each in left_out if each.twin is None and not (taken and taken(each.source.name)))
    dropped = Counter(each.reason for each in lost)
    notes = [
        *rope_notes,
        *([announced] if announced else []),
        *_warnings(record, config),
        *(f"{count} dropped: {why}" for why, count in dropped.items()),
    ]
    unknown = [key for key in config.unused if key not in IGNORED]
    if unknown:
        notes.append(f"these keys of config.json are not used: {', '.join(unknown)}")
    return Plan(record, dims, tuple(outputs), metadata, tuple(notes), tuple(left_out), numbers, lists, appended)


# -- which source goes where ------------------------------------------------------------------------------------------


def _assign(
    record: Architecture, own: int, blocks: int, tensors: Mapping[str, StoredTensor], problems: list[str]
) -> tuple[dict[Slot, list[SlotSource]], list[LeftOut]]:
    """Sort the source tensors into slots, and those that have none aside. own: the blocks without the appended ones."""
    names = source_names(record.known, blocks)
    slots: dict[Slot, list[SlotSource]] = {}
    left_out: list[LeftOut] = []
    tied: list[tuple[StoredTensor, Tensor]] = []
    for source in tensors.values():
        reason = record.why_dropped(source.name)
        if reason is None and record.beyond and mtp.layer_of(source.name) >= own:
            reason = record.beyond
        if reason is not None:
            left_out.append(LeftOut(source, reason))
            continue
        taken = next((tensor for end, tensor in record.tied.items() if f".{source.name}".endswith(f".{end}")), None)
        if taken is not None:
            tied.append((source, taken))
            continue
        name = counted_through(record, mtp.appended_name(record, source.name, own), blocks)
        places = list(_places(record, names, source, name))
        if not places or any(slot.tensor not in record.known for slot, _ in places):
            problems.append(_unknown(source.name, names))
        for slot, piece in places:
            slots.setdefault(slot, []).append(piece)
    for source, taken in tied:
        slot = Slot(taken, None, "weight")
        if slot in slots:  # else reported as missing
            why = f"llama.cpp uses {slot.name} instead"
            left_out.append(LeftOut(source, why, slots[slot][0].source))
    return slots, left_out


def _places(
    record: Architecture, names: Mapping[str, Tensor], source: StoredTensor, name: str
) -> Iterator[tuple[Slot, SlotSource]]:
    """The slots a source fills: one, or several for a fused tensor; none if its name is unknown.

    Names with and without the "model." prefix are the same tensor (see also `names.plain_name`), and where Mamba began,
    that is called "backbone.".
    """
    whole = base = record.known_name(plain_name(name))
    base, part = base.rsplit(".", 1) if base.endswith((".weight", ".bias")) else (base, "weight")
    expert = EXPERT.search(f"{base}.")
    number = int(expert[1]) if expert else None
    key = EXPERT.sub(".experts.", f"{base}.")[:-1]
    block = next((int(piece) for piece in key.split(".") if NUMBER.fullmatch(piece)), None)
    for fused in record.fused:
        if key.endswith(fused.suffix) or whole.endswith(fused.suffix):
            for tensor, op in fused.parts:
                end = part if fused.part is None else fused.part
                piece = number if fused.piece is None else fused.piece
                here = block if "{bid}" in base_name(tensor) else None
                yield Slot(tensor, here, end), SlotSource(source, piece, op, fused.shape, fused.either)
            return
    inside = key.removeprefix("model.").removeprefix("backbone.")
    for candidate in (key, f"model.{key}", inside, f"backbone.{inside}"):
        if candidate in names:
            yield Slot(names[candidate], block, part), SlotSource(source, number)
            return


def source_shape(record: Architecture, dims: Dims, name: str) -> Shape | None:
    """The shape that a checkpoint of these dimensions has under this name; None if the model has no such tensor."""
    names = source_names(record.known, dims.blocks)
    name = counted_through(record, name, dims.blocks)
    for slot, piece in _places(record, names, StoredTensor(name, (), "F32", Path(), 0, 0), name):
        for rule in record.tensors:
            named = slot.tensor is rule.taken and (slot.part == rule.part or (rule.bias and slot.part == "bias"))
            if named and rule.when(dims) and (slot.block is None or dims.kind(slot.block).issuperset(rule.on.split())):
                shape = dims.at(slot.block).sizes(piece.shape or rule.shape)[piece.expert is not None :]
                return (shape[:-1] or shape) if slot.part != rule.part and piece.shape is None else shape
    return None


def _unknown(name: str, names: Mapping[str, Tensor]) -> str:
    last = name.rpartition(".")[2]
    if last in COMPANIONS:  # what quantization the tensors are, `dequantize.detect` has found before
        return f"{name}: a companion of a quantized tensor ({last}) that is not used"
    aliases = (alias for alias in names if alias.startswith(("model.", "lm_head")))
    near = next(iter(nearest(name, aliases)), None)
    return f"{name}: there is no GGUF tensor for it{f'; the nearest known name is {near}' if near else ''}"


# -- dimensions -------------------------------------------------------------------------------------------------------


def _dimensions(record: Architecture, config: Config, blocks: int, slots: Mapping[Slot, list[SlotSource]]) -> Dims:
    """Sizes from the config, and from the tensors where configs are known to lie (vocabulary, head size, experts)."""

    def shape(tensor: MODEL_TENSOR, block: int | None) -> Shape:
        pieces = slots.get(Slot(tensor, block, "weight"))
        return pieces[0].source.shape if pieces else ()

    def positive(*names: str, default: int | None = None) -> int:
        value = config.integer(*names, default=default)
        if value is None or value <= 0:
            raise Malformed(f"{names[0]} must be a positive number, not {value}", where=config.path)
        return value

    def stated(size: str, *names: str, default: int | None = None) -> int:
        """A size that the record may find in its own way."""
        return record.sizes[size](config) if size in record.sizes else positive(*names, default=default)

    embedding = shape(MODEL_TENSOR.TOKEN_EMBD, None)
    embd = positive("hidden_size", "dim")
    heads = stated("heads", "num_attention_heads", "n_heads")
    query = shape(MODEL_TENSOR.ATTN_Q, 0)
    head_dim = positive("head_dim", default=max(embd // max(heads, 1), 1))
    if query and record.head_rows and query[0] % (heads * record.head_rows) == 0:
        head_dim = query[0] // (heads * record.head_rows)
    if head_dim > MAX_HEAD_DIM:
        raise Malformed(f"head_dim is {head_dim}, over the limit of {MAX_HEAD_DIM}", where=config.path)
    experts = config.integer("num_local_experts", "num_experts", default=0) or 0
    stacked = slots.get(Slot(MODEL_TENSOR.FFN_DOWN_EXP, 0, "weight"), [])
    if stacked:
        experts = len(stacked) if stacked[0].expert is not None else next(iter(stacked[0].source.shape), 0)
    ff = (config.integer("intermediate_size") or 0) if "ff" in record.sizes else positive("intermediate_size")
    partial = partial_rotary_factor(config, record.rope)
    found = Dims(
        blocks=blocks,
        vocab=embedding[0] if embedding else positive("vocab_size"),
        embd=embd,
        heads=heads,
        kv_heads=stated("kv_heads", "num_key_value_heads", "n_kv_heads", default=heads),
        head_dim=head_dim,
        rotary=int(partial * head_dim),
        ff=ff,
        experts=experts,
        expert_ff=config.integer("moe_intermediate_size", default=ff) or ff,
        shared_ff=config.integer("shared_expert_intermediate_size", default=0) or 0,
    )
    own = {name: size(config) for name, size in record.sizes.items()}
    usual = {name: own.pop(name) for name in list(own) if hasattr(found, name)}
    kinds = tuple(frozenset(words.split()) for words in record.kinds(config, blocks)) if record.kinds else ()
    factors = {name: factor(config) for name, factor in record.factors.items()}
    each = tuple(record.own(config, blocks)) if record.own else ()
    return replace(found, **usual, more=own, kinds=kinds, factors=factors, own=each)


# -- outputs ----------------------------------------------------------------------------------------------------------


def _outputs(
    record: Architecture, dims: Dims, slots: dict[Slot, list[SlotSource]], problems: list[str], partial: bool
) -> Iterator[TensorPlan]:
    """Every output tensor: those outside the blocks first, then block by block, in the order of the record."""
    left = dict(slots)
    rules = [rule for rule in record.tensors if rule.when(dims)]
    in_blocks = [rule for rule in rules if "{bid}" in base_name(rule.tensor)]
    places: list[tuple[TensorRule, int | None]] = [(rule, None) for rule in rules if rule not in in_blocks]
    places += [
        (rule, block)
        for block in range(dims.blocks)
        for rule in in_blocks
        if dims.kind(block).issuperset(rule.on.split())
    ]
    for rule, block in places:
        for part in (rule.part, "bias")[: 1 + rule.bias]:
            slot = Slot(rule.tensor, block, part)
            pieces = None if rule.made else left.pop(Slot(rule.taken, block, part), None)
            if pieces is None and part == rule.part and rule.fallback is not None and not partial:
                pieces = slots.get(Slot(rule.fallback, block, part))
            if pieces is not None:
                output = _output(rule, slot, pieces, dims.at(block), problems)
                if output is not None:
                    yield output
            elif part == rule.part and (rule.made or rule.unused) and not partial:
                made = rule.made(dims) if rule.made else Zeros(dims.sizes(rule.shape))
                yield TensorPlan(slot.name, made.shape(), made, (), len(made.shape()) <= 1 or stays_f32(slot))
            elif part == rule.part and rule.need is Need.REQUIRED and not partial:
                problems.append(f"{slot.name}: its source is missing from the checkpoint")
    for slot, pieces in left.items():
        if slot.tensor in record.known:  # else reported as unknown
            problems.append(f"{pieces[0].source.name}: {slot.name} does not exist in this model")


def _output(
    rule: TensorRule, slot: Slot, pieces: list[SlotSource], dims: Dims, problems: list[str]
) -> TensorPlan | None:
    """One output from its pieces; None after adding what is wrong to `problems`."""
    pieces = sorted(pieces, key=lambda piece: -1 if piece.expert is None else piece.expert)
    names = [piece.source.name for piece in pieces]
    if rule.joined:
        return _joined(rule.joined(dims), slot, pieces, dims, problems)
    op = pieces[0].op(dims) if pieces[0].op else rule.op(dims)
    expected = dims.sizes(pieces[0].shape or rule.shape)
    own = expected if pieces[0].expert is None else expected[1:]
    if pieces[0].either and pieces[0].source.shape not in (own, ()) and len(expected) > 1:
        op, expected = Chain(Turn(), op), (*expected[:-2], expected[-1], expected[-2])
    if pieces[0].expert is not None:
        there = {piece.expert for piece in pieces}
        missing = list(islice(filterfalse(there.__contains__, range(expected[0])), 8))
        if missing or len(pieces) != expected[0]:
            problems.append(f"{slot.name}: {len(pieces)} experts for {expected[0]}, missing {missing}")
            return None
        op, expected = Stack(), expected[1:]
    elif len(pieces) > 1:
        problems.append(f"{slot.name}: {' and '.join(names[:3])} both claim it")
        return None
    if slot.part == "bias" and slot.part != rule.part and pieces[0].shape is None:
        expected = expected[:-1] or expected
        op = Copy() if op.computes else op
    before, known = len(problems), INTEGERS.get(op.integers, tuple(SOURCE_FORMATS))
    for piece in pieces:
        source = piece.source
        if source.shape != expected:
            problems.append(f"{source.name}: shape {list(source.shape)}, but the config says {list(expected)}")
        if source.dtype not in known:
            what = "numbers" if op.integers else "weights"
            problems.append(f"{source.name}: {source.dtype} {what} are not supported ({', '.join(known)} are)")
        elif source.dtype != pieces[0].source.dtype:
            problems.append(f"{source.name}: {source.dtype}, while {names[0]} is {pieces[0].source.dtype}")
    if len(problems) > before:
        return None
    try:
        shape = op.shape(*(piece.source.shape for piece in pieces))
    except ValueError as error:
        problems.append(f"{names[0]}: {error}")
        return None
    sources = tuple(piece.source for piece in pieces)
    return TensorPlan(
        slot.name, shape, op, sources, len(shape) <= 1 or rule.exact or (stays_f32(slot) and not rule.typed)
    )


def _joined(op: Op, slot: Slot, pieces: list[SlotSource], dims: Dims, problems: list[str]) -> TensorPlan | None:
    """One output from several sources that are not alike; None after adding what is wrong to `problems`."""
    before, sources = len(problems), tuple(piece.source for piece in pieces)
    for piece, source in zip(pieces, sources, strict=True):
        expected = dims.sizes(piece.shape) if piece.shape else source.shape  # or judged by the op
        if source.shape != expected:
            problems.append(f"{source.name}: shape {list(source.shape)}, but the config says {list(expected)}")
        if source.dtype not in SOURCE_FORMATS or source.dtype != sources[0].dtype:
            problems.append(f"{source.name}: {source.dtype} weights are not supported beside {sources[0].dtype}")
    if len(problems) > before:
        return None
    try:
        shape = op.shape(*(source.shape for source in sources))
    except ValueError as error:
        problems.append(f"{slot.name}: {error}")
        return None
    return TensorPlan(slot.name, shape, op, sources, len(shape) <= 1 or stays_f32(slot))


# -- config -----------------------------------------------------------------------------------------------------------


def _check_config(record: Architecture, config: Config, dims: Dims, problems: list[str]) -> None:
    for key, allowed in record.require.items():
        value = config.first(key)
        if value is not None and value not in allowed:
            wanted = " or ".join(repr(choice) for choice in allowed) or "nothing"
            problems.append(f"config.json: {key} is {value!r}, but llama.cpp assumes {wanted}")
    problem = record.check(config, dims) if record.check else None
    if problem:
        problems.append(f"config.json: {problem}")
    claimed = config.integer("num_local_experts", "num_experts", default=dims.experts)
    if claimed != dims.experts:
        problems.append(f"config.json: {claimed} experts, but the tensors hold {dims.experts}")
    used = config.integer("num_experts_per_tok", default=0) or 0
    if dims.experts and not 1 <= used <= dims.experts:
        problems.append(f"config.json: num_experts_per_tok is {used}, of {dims.experts} experts")


def _metadata(record: Architecture, config: Config, dims: Dims, problems: list[str]) -> Metadata:
    """The keys of the record, from dimensions, config or default."""
    metadata: Metadata = {}
    for key in record.keys:
        asked = key.names[0] if key.names else key.name.format(arch="")[1:]
        if key.computed:
            value = key.computed(config, dims)
        else:
            value = key.of(dims) if key.of else config.first(*key.names)
            value = key.default if value is None else value
            if value is Need.REQUIRED:
                problems.append(f"config.json: {asked} is missing")
                continue
            if value is not None and not _is_size(value):
                problems.append(f"config.json: {asked} must be a number of at least 0, not {value!r:.40}")
                continue
        if value is not None:
            metadata[key.name.format(arch=record.name)] = made(key.make, value, config, asked)
    return metadata


def _is_size(value: object) -> bool:
    """Whether llama.cpp can compute with it: no key of a record has a meaning below zero."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= FLOAT32_MAX


def _warnings(record: Architecture, config: Config) -> Iterator[str]:
    for key, (harmless, sentence) in record.warn.items():
        value = config.first(key)
        if value is not None and value not in harmless:
            yield f"{key} is {value!r}: {sentence}"
