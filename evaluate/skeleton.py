"""The model without its weights: transformers' own class on torch's meta device, and which GGUF tensor goes where.

Nothing is downloaded and nothing that a checkpoint brings is executed: the class is the one that transformers itself
has for the architecture's record. Which parameter is which GGUF tensor is not written down a second time either: the
skeleton's parameters go through `make_plan`, as if they were to be converted, and the ops are used backwards.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf.constants import Keys
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.layout import rows_of
from ggufsmith.container.typed import TypedKeys
from ggufsmith.container.values import Metadata, Value
from ggufsmith.convert.architectures import ARCHITECTURES
from ggufsmith.convert.config import Config, text_part
from ggufsmith.convert.hf.config import check_keys
from ggufsmith.convert.invert import Inverse, inverses
from ggufsmith.convert.numbers import constants
from ggufsmith.convert.ops import Array, Constant
from ggufsmith.convert.plan import Plan, TensorPlan, find_architecture, make_plan
from ggufsmith.convert.stored import StoredTensor
from ggufsmith.evaluate.head import EMBEDDING, HEAD
from ggufsmith.evaluate.observe import Latent, Tap
from ggufsmith.evaluate.rounds import Around, Rounds
from ggufsmith.evaluate.variants import ModelVariant, SourceModel, Weights

HEAD_BIAS = "output.bias"
BY_TOKEN = frozenset((EMBEDDING, "per_layer_token_embd.weight"))  # a row for every token
POSITIONS = "position_embd.weight"
TOKENS = "tokenizer.ggml.tokens"
# Keys of config.json that say how weights are stored or loaded, not what is computed. Any pad_token_id would do: only
# training looks at it.
NOT_PASSED = frozenset(
    """architectures attn_implementation auto_map compression_config dtype model_type pad_token_id quantization
    quantization_config text_config torch_dtype transformers_version vision_config _attn_implementation""".split()
)
FLAT_ROPE = tuple(
    """rope_theta rope_scaling partial_rotary_factor rotary_pct rope_pct rotary_emb_base rope_local_base_freq
    swa_rope_theta""".split()
)
BLOCK = re.compile(r"blk\.(\d+)\.")
MAX_LISTED = 12
UNLIKE = "its parameters are not those of the checkpoint"
LLAMA_TOOLS = "Convert the model, and measure it with llama.cpp's own tools: llama-imatrix, llama-perplexity."


@dataclass(frozen=True)
class Skeleton:
    """A model whose parameters are on the meta device.

    model:    transformers' model, in eval mode; its buffers are there. It may see pictures too, which is not run.
    base:     the part of it before the head. decoder: the part of that which runs the blocks, mostly all of it.
    blocks:   the decoder's.
    plan:     how GGUF tensors would be made from its parameters, but for the head.
    inverses: how its parameters are made from GGUF tensors.
    implementation: of the attention, as transformers calls it.
    numbers:  how those of its blocks' parameters are made that GGUF has among its keys.
    never:    tokens that it never predicts: Chameleon's for pictures.
    whole:    all between embedding and head is one block (see `rounds`).
    """

    model: Any
    base: Any
    decoder: Any
    blocks: Sequence[Any]
    plan: Plan
    inverses: tuple[Inverse, ...]
    implementation: str
    numbers: tuple[Inverse, ...] = ()
    never: tuple[int, ...] = ()
    whole: bool = False

    @property
    def vocabulary(self) -> int:
        """The rows of embedding and head."""
        return self.plan.dims.vocab

    @property
    def positions(self) -> int | None:
        """How many positions have an embedding, where they do."""
        return next((each.shape[0] for each in self.plan.outputs if each.name == POSITIONS), None)

    @property
    def outside(self) -> list[Inverse]:
        """The parameters that are in no block and not the head: embeddings, norms, and what else stands at the ends."""
        return [each for each in self.inverses if self.place(each.outputs[0].name) is None and not _is_head(each)]

    def place(self, tensor: str) -> int | None:
        """The number of the block that a GGUF tensor is in; None for one that is in none."""
        if self.whole:
            return None if tensor in (*BY_TOKEN, HEAD, HEAD_BIAS) else 0
        found = BLOCK.match(tensor)
        return int(found[1]) if found else None

    def inside(self, block: int) -> list[Inverse]:
        """The parameters of a block."""
        own = [each for each in self.inverses if self.place(each.outputs[0].name) == block]
        prefix = self.prefix(block)
        return [*own, *(each for each in self.numbers if each.source.name.startswith(prefix))]

    def outputs(self, block: int) -> list[TensorPlan]:
        """The GGUF tensors of a block."""
        return [each for each in self.plan.outputs if self.place(each.name) == block]

    def taps(self, block: int) -> dict[str, tuple[Tap, ...]]:
        """The parameters of a block, by the names they have in it, and the GGUF tensors that are made of each."""
        prefix, found = self.prefix(block), dict[str, tuple[Tap, ...]]()
        for output in self.outputs(block):
            for source in output.sources:
                name = source.name.removeprefix(prefix)
                tap = Tap(output.name, output.op.columns(source.shape[-1]))
                found[name] = (*found.get(name, ()), tap)
        return found

    def latent(self, block: int) -> Latent | None:
        """What latent attention in a block takes the place of; None if it has none."""
        prefix = self.prefix(block)
        outputs = {each.name.removeprefix(f"blk.{block}."): each for each in self.outputs(block)}
        keys, values = outputs.get("attn_k_b.weight"), outputs.get("attn_v_b.weight")
        queries = outputs.get("attn_q_b.weight") or outputs.get("attn_q.weight")
        if keys is None or values is None or queries is None:
            return None
        (made, *_), (latent, *_) = queries.sources, keys.sources
        heads, _, size = keys.shape
        own = (made.name.removeprefix(prefix), latent.name.removeprefix(prefix))
        return Latent(*own, keys.name, values.name, heads, size)

    def prefix(self, block: int) -> str:
        """What the names of a block's parameters begin with."""
        wanted = self.model.get_decoder() if self.whole else self.blocks[block]
        return next(f"{name}." for name, module in self.model.named_modules() if module is wanted)


def build_skeleton(source: SourceModel) -> Skeleton:
    """The skeleton of a model. Unsupported: transformers lacks the class, or cannot make it from this config."""
    transformers.logging.set_verbosity_error()
    source = _unfolded(source)
    model = _model(source)
    blocks = _blocks(model)
    whole = blocks is None
    if whole:
        base = model.get_decoder()
        blocks = [Rounds(base)]
        decoder = Around(base, blocks[0])
    else:
        place = next(name for name, module in model.named_modules() if module is blocks)
        base, decoder = (model.get_submodule(name) for name in (place.partition(".")[0], place.rpartition(".")[0]))
    head = model.get_output_embeddings()
    if head is None:
        raise _not_here(source, model, "its head was not found")
    # A head with a bias is never the embedding: only then it has to be there.
    left_out = head.weight if getattr(head, "bias", None) is None else None
    shapes = {
        name: ("I64" if value.dtype is torch.int64 else "F32", tuple(value.shape))
        for name, value in model.state_dict(keep_vars=True).items()
        if value is not left_out
    }
    config = Config({**source.config, "vocab_size": _rows(source)}, source.where)
    names, plan, parameters = _planned(source, model, config, shapes)
    own = {told: name for name, told in names.items()}
    plan = replace(plan, outputs=tuple(replace(each, sources=_renamed(each.sources, own)) for each in plan.outputs))
    try:
        found = tuple(inverses(plan.outputs))
    except Failure as error:
        raise _not_here(source, model, UNLIKE, error) from error
    _check_reading(source, model, config, plan, parameters)
    appended = Keys.LLM.NEXTN_PREDICT_LAYERS.format(arch=plan.architecture.name)
    if source.where.is_file() and not TypedKeys(source.source.metadata, source.where).number(appended):
        check_keys(plan.metadata, source.source.metadata, source.where)
    stated = constants(plan.numbers, source.source.metadata, source.where)
    numbers = tuple(Inverse(parameter, (), op) for parameter, op in stated)
    implementation = model.config._attn_implementation
    return Skeleton(model, base, decoder, blocks, plan, found, implementation, numbers, _never(model), whole)


def _planned(
    source: SourceModel, model: Any, config: Config, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
) -> tuple[dict[str, str], Plan, dict[str, StoredTensor]]:
    """How parameters of these types and shapes would be converted, and the names that they have for that.

    They are the model's own names, or if these are not known, those under which transformers saves them.
    """
    for names in ({name: name for name in shapes}, _published(model, shapes)):
        parameters = {
            names[name]: StoredTensor(names[name], shape, dtype, Path(), 0, int(dtype[1:]) // 8 * math.prod(shape))
            for name, (dtype, shape) in shapes.items()
        }
        try:
            return names, make_plan(config, parameters), parameters
        except Failure as error:
            failure = error
    raise _not_here(source, model, UNLIKE, failure) from failure


def _published(model: Any, names: Iterable[str]) -> dict[str, str]:
    """Own names of parameters -> those in a checkpoint, by transformers' own renaming; packed experts stay packed."""
    kind = model.config.get_text_config().model_type
    known = get_checkpoint_conversion_mapping(kind) or []
    back = [each.reverse_transform() for each in reversed(known) if type(each) is WeightRenaming]
    found = {}
    for name in names:
        found[name] = name
        for each in back:
            found[name] = each.rename_source_key(found[name])[0]
    return found


def _renamed(sources: Sequence[StoredTensor], names: Mapping[str, str]) -> tuple[StoredTensor, ...]:
    return tuple(replace(each, name=names.get(each.name, each.name)) for each in sources)


def _unfolded(source: SourceModel) -> SourceModel:
    """The same model with a config that does not name the scales which conversion has multiplied into the weights."""
    folded = find_architecture(Config(source.config, source.where)).folded
    return replace(source, config={key: value for key, value in source.config.items() if key not in folded})


def _blocks(model: Any) -> Any:
    """The list of the decoder's blocks."""
    count = model.config.get_text_config().num_hidden_layers
    lists = (each for each in model.get_decoder().modules() if isinstance(each, torch.nn.ModuleList))
    return next((each for each in lists if len(each) == count), None)


def _check_reading(
    source: SourceModel, model: Any, config: Config, plan: Plan, parameters: Mapping[str, StoredTensor]
) -> None:
    """Unsupported if transformers reads the config otherwise than conversion does: another model would be run."""
    read = model.config.get_text_config().to_dict()
    ours = {key: value for key, value in read.items() if key not in ("architectures", "model_type", "vocab_size")}
    if read.get("rope_parameters"):  # which are what counts: older names may stand beside them, unread
        ours |= dict.fromkeys(FLAT_ROPE)
    try:
        theirs = make_plan(Config({**config, **ours}, source.where), parameters).metadata
    except Failure as error:
        raise _not_here(source, model, "it reads config.json otherwise than llama.cpp does", error) from error
    keys = [key for key in plan.metadata.keys() | theirs.keys() if not _alike(plan.metadata.get(key), theirs.get(key))]
    if keys:
        also = [f"{key} would be {_said(theirs, key)} instead of {_said(plan.metadata, key)}" for key in sorted(keys)]
        raise _not_here(source, model, "it reads config.json otherwise than llama.cpp does", also=also[:MAX_LISTED])


def _never(model: Any) -> tuple[int, ...]:
    """The tokens that the model's forward takes out of what it predicts, which it does not do any more from here on."""
    found: list[int] = []
    for module in model.modules():
        if mapping := getattr(module, "vocabulary_mapping", None):
            found, mapping.image_tokens = [*mapping.image_tokens], []  # it would look for them in every piece of a head
    return tuple(found)


def _is_head(inverse: Inverse) -> bool:
    return inverse.outputs[0].name in (HEAD, HEAD_BIAS)


def _alike(ours: Value | None, theirs: Value | None) -> bool:
    """Whether two values are equal. A list of ours may go on, for the blocks of multi-token prediction."""
    if ours is None or theirs is None:
        return ours is theirs
    one, other = (each.data if isinstance(each.data, np.ndarray) else None for each in (ours, theirs))
    if one is None or other is None:
        return ours == theirs
    return np.array_equal(one[: len(other)], other)


def _said(metadata: Metadata, key: str) -> str:
    return str(metadata[key].data)[:80] if key in metadata else "absent"


def _not_here(
    source: SourceModel, model: Any, why: str, error: Failure | None = None, also: Sequence[str] = ()
) -> Unsupported:
    return Unsupported(
        f"transformers' {type(model).__name__} cannot be run here yet: {why}",
        where=source.where,
        also=error.also if error else also,
        fix=LLAMA_TOOLS,
    )


def _rows(source: SourceModel) -> int:
    embedding = source.source.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2:
        raise Malformed(f"{EMBEDDING} is missing, so this is not a model that can be run", where=source.where)
    return embedding.shape[0]


def _model(source: SourceModel) -> Any:
    """The causal language model on the meta device, with its buffers computed."""
    name = _class_name(source)
    known = getattr(transformers, name, None)
    if known is None or getattr(known, "config_class", None) is None:
        raise Unsupported(
            f"transformers {transformers.__version__} does not have the class {name}",
            where=source.where,
            fix="Install a release of transformers that has it: pip install --upgrade transformers",
        )
    values = {key: value for key, value in source.config.items() if key not in NOT_PASSED}
    values |= {"vocab_size": _rows(source), "pad_token_id": 0, "tie_word_embeddings": False, "use_cache": False}
    if "text_config" in known.config_class.sub_configs:
        values = {"text_config": values, "tie_word_embeddings": False}
    try:
        config = known.config_class(**values)
        config._experts_implementation = "eager"
        with torch.device("meta"):
            model = known._from_config(
                config,
                dtype=torch.float32,
                attn_implementation="sdpa" if known._supports_sdpa else "eager",
            )
    except Exception as error:
        raise Unsupported(
            f"transformers {transformers.__version__} cannot make a {name} from this config: "
            f"{type(error).__name__}: {str(error)[:300]}",
            where=source.where,
        ) from error
    try:
        _compute_buffers(model, source.where)
    except Failure:
        raise
    except Exception as error:
        raise _not_here(source, model, f"{type(error).__name__}: {str(error)[:300]}") from error
    return model.eval().requires_grad_(False)


def _class_name(source: SourceModel) -> str:
    """The class that the config names; of a model with more than text, that of its text model.

    The classes of one record differ in what they compute, so that none stands for another.
    """
    said = source.config.get("architectures") or [""]
    known = find_architecture(Config(source.config, source.where)).classes
    if said[0] in known and said[0].endswith(("CausalLM", "LMHeadModel")) and hasattr(transformers, said[0]):
        return str(said[0])
    text = text_part(source.config)
    if not text and not any(hasattr(transformers, each) for each in known):
        return str(said[0])  # a model type may be known all the same: that of EXAONE 3
    kind = (text or source.config).get("model_type")
    found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if isinstance(found, str):
        return found
    inside = text.get("architectures")
    name = str(inside[0]) if isinstance(inside, list) and inside else ""
    if name in ARCHITECTURES and hasattr(transformers, name):
        return name
    whole = str(said[0]) if said[0] in known and hasattr(transformers, said[0]) else known[0]
    thinker = whole.replace("For", "ThinkerFor", 1)  # the part that writes, of a model that also speaks
    return thinker if hasattr(transformers, thinker) else whole


def _compute_buffers(model: Any, where: Path) -> None:
    """Buffers are no weights: transformers computes them from the config, by what it calls initializing a module."""
    if not hasattr(model.config, "initializer_range"):  # which a class around a text model may look for in its own
        model.config.initializer_range = 0.02
    owners = list(_owners(model, model))
    holders = [(owner, module) for owner, module in owners if dict(module.named_buffers(recurse=False))]
    for owner, module in holders:
        for name, value in module.named_buffers(recurse=False):
            fill = float("nan") if value.is_floating_point() else 0
            setattr(module, name, torch.full(tuple(value.shape), fill, dtype=value.dtype))
        owner._init_weights(module)
    if any(_unset(module) for _, module in holders):  # those of Falcon-H1 are computed by the module around all blocks
        for owner, module in owners:
            owner._init_weights(module)
    for _, module in holders:
        if unset := _unset(module):
            raise Unsupported(
                f"transformers {transformers.__version__} does not compute {', '.join(unset)} of "
                f"{type(module).__name__}",
                where=where,
                fix="Install another release of transformers, at least 5.0.",
            )


def _owners(module: Any, owner: Any) -> Iterator[tuple[Any, Any]]:
    """Every module with the model or part of a model that it is in: those know how to initialize it."""
    owner = module if isinstance(module, transformers.PreTrainedModel) else owner
    yield owner, module
    for child in module.children():
        yield from _owners(child, owner)


def _unset(module: Any) -> list[str]:
    """The module's own buffers that were not computed, but for those that a checkpoint holds."""
    kept = module.state_dict(keep_vars=True)
    return [
        name
        for name, value in module.named_buffers(recurse=False)
        if name not in kept and value.is_floating_point() and bool(value.isnan().any())
    ]


# -- weights ----------------------------------------------------------------------------------------------------------


def parameters_of(inverses: Sequence[Inverse], rows: Mapping[str, Weights]) -> dict[str, Weights]:
    """Parameters by their names in the model.

    rows: of the GGUF tensors that they are made of, (rows, width) float32. Where nothing has to move, a parameter
    shares their memory.
    """
    found: dict[str, Weights] = {}
    for source, outputs, op in inverses:
        # Files do not keep a leading axis of one.
        made = [rows[each.name].reshape(rows_of(each.shape)) for each in outputs]

        def read(k: int, first: int, last: int, made: Sequence[Weights] = made) -> Array:
            return made[k][first:last]

        shapes = tuple(each.shape for each in outputs)
        found[source.name] = op.rows(read, shapes, 0, rows_of(source.shape)[0]).reshape(source.shape)
    return found


def check_variants(skeleton: Skeleton, source: ModelVariant, variants: Sequence[ModelVariant]) -> None:
    """Malformed if a variant is not this model with other weights: other tensors, shapes, or vocabulary."""
    for variant in variants:
        problems = list(_differences(skeleton, source, variant))
        if problems:
            where = variant.paths[0] if variant.paths else variant.label
            more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
            if variant is source:
                raise Unsupported(
                    f"transformers' {type(skeleton.model).__name__} has other tensors than this model",
                    where=where,
                    also=[*problems[:MAX_LISTED], *more],
                    fix=LLAMA_TOOLS,
                )
            raise Malformed(
                f"this is not the same model as {source.label}",
                where=where,
                also=[*problems[:MAX_LISTED], *more],
                fix="Compare files with the model that they were made from.",
            )


def _differences(skeleton: Skeleton, source: ModelVariant, variant: ModelVariant) -> Any:
    for key in (Keys.General.ARCHITECTURE, TOKENS, *skeleton.plan.numbers):
        ours, theirs = source.metadata.get(key), variant.metadata.get(key)
        if ours is not None and theirs is not None and not _equal(ours.data, theirs.data):
            short = len(str(theirs.data)) < 80
            other = f"{key} differs{': another vocabulary' if key == TOKENS else ''}"
            yield f"{key} is {theirs.data!r}, not {ours.data!r}" if short else other
    key = Keys.LLM.NEXTN_PREDICT_LAYERS.format(arch=skeleton.plan.architecture.name)
    # Blocks for multi-token prediction, which transformers passes over.
    appended = TypedKeys(variant.metadata, variant.label).optional(key, int) or 0
    given = (each for each in skeleton.plan.outputs if BLOCK.match(each.name) or not isinstance(each.op, Constant))
    expected = {each.name: each.shape for each in given}
    expected[HEAD] = expected[EMBEDDING]
    for name, shape in expected.items():
        tensor = variant.tensors.get(name)
        if tensor is None:
            if name != HEAD:
                yield f"{name} is missing"
        elif _squeezed(tensor.shape) != _squeezed(shape):
            yield f"{name} has the shape {list(tensor.shape)}, not {list(shape)}"
    for name in variant.tensors:
        block = BLOCK.match(name)
        if block and 0 <= int(block[1]) - len(skeleton.blocks) < appended:
            continue
        if name not in expected and not re.match(r"rope_", name):
            yield f"{name} is not a tensor of {type(skeleton.model).__name__}"


def _equal(ours: Any, theirs: Any) -> bool:
    return ours == theirs if isinstance(ours, str) else list(ours) == list(theirs)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
