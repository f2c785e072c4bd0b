"""config.json and generation_config.json from the keys and tensors of a GGUF file.

The keys of the architecture's record, read backwards; rope parameters by `hf.rope`.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet
from ggufsmith.container.typed import TypedKeys
from ggufsmith.container.untrusted import shown
from ggufsmith.container.values import Data, Metadata, string
from ggufsmith.convert.architectures.classic import gemma_attention_scalar
from ggufsmith.convert.architectures.groups import SIZES
from ggufsmith.convert.gguf_names import Tensor, base_name
from ggufsmith.convert.hf.classes import HfClass
from ggufsmith.convert.hf.further import CLASSES
from ggufsmith.convert.hf.given import Given
from ggufsmith.convert.hf.rope import rope_config
from ggufsmith.naming.metadata import SAMPLING
from ggufsmith.quantize.model_check import other_kind
from ggufsmith.tokenizer.added import ROLES
from ggufsmith.tokenizer.restore import ends_of_generation
from ggufsmith.tokenizer.vocabulary import Vocabulary

Tensors = Mapping[str, TensorInfo]
MAX_FACTORS = 1 << 16  # numbers in a tensor of rope factors
GENERATION_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def find_class(keys: TypedKeys, tensors: Tensors) -> HfClass:
    """The class for this file. Unsupported: no model, or an architecture that has no class here."""
    if failure := other_kind(keys.metadata, (), keys.where):
        raise failure
    name = keys.text(Keys.General.ARCHITECTURE)
    sparse = bool(keys.number(Keys.LLM.EXPERT_COUNT.format(arch=name)))
    for each in CLASSES:
        if each.record.name == name and each.sparse in (sparse, None) and each.when(Given(each.record, keys, tensors)):
            return each
    known = sorted({each.record.name for each in CLASSES})
    raise Unsupported(
        f"no Hugging Face class is known for the architecture {shown(name)}{' with experts' if sparse else ''}",
        where=keys.where,
        fix=f"Known: {', '.join(known)}.",
    )


def model_config(source: GgufSet) -> tuple[HfClass, dict[str, Any]]:
    """The class of a model file, and its config.json without the token ids and the dtype.

    Raises what `find_class`, `config_of` and `hf.rope.rope_config` raise.
    """
    keys = TypedKeys(source.metadata, source.path)
    known = find_class(keys, source.tensors)
    rope = rope_config(known.record, keys, lambda name: _vector(source, name))
    given = Given(known.record, keys, source.tensors, lambda name: _vector(source, name))
    return known, config_of(known, given, rope)


def _vector(source: GgufSet, name: str) -> NDArray[np.float32] | None:
    """A small float32 tensor, None if there is none."""
    info = source.tensors.get(name)
    if info is None:
        return None
    if info.format.name != "F32" or len(info.shape) != 1 or info.shape[0] > MAX_FACTORS:
        raise Malformed(
            f"is {info.format.name} {list(info.shape)}, not a vector in F32", where=f"{source.path}: {name}"
        )
    values = np.empty(info.shape, np.float32)
    source.read_into(info, 0, values)
    return values


def config_of(known: HfClass, given: Given, rope: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without the token ids and the dtype. rope: see `hf.rope.rope_config`.

    Malformed: a key that the class cannot do without is missing. Unsupported: biases that the class does not have.
    """
    record, where, tensors = known.record, given.keys.where, given.tensors
    made = known.more(given)
    config: dict[str, Any] = {
        "architectures": [known.name],
        "model_type": known.model_type,
        **{key: allowed[0] for key, allowed in record.require.items() if len(allowed) == 1},
        **known.constants,
        **_keys(given),
    }
    config |= {name: made[name] for name in ("num_attention_heads", "num_key_value_heads") if name in made}
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise Malformed("token_embd.weight is missing: the file has no weights", where=where)
    config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    heads, embd = config.setdefault("num_attention_heads", 0), config["hidden_size"]
    config.setdefault("num_key_value_heads", heads)
    if "query_pre_attn_scalar" in record.defaults:
        head = config.setdefault("head_dim", embd // max(heads, 1))
        config["query_pre_attn_scalar"] = gemma_attention_scalar(config["num_hidden_layers"], embd, heads, head)
    if "sliding_window" in config:
        config["sliding_window"] = config["sliding_window"] or None  # 0: there is none
    config |= {**rope, **_biases(known, tensors, where), **made}
    own = {usual: name for name, usual in record.aliases.items()}
    own |= {"num_local_experts": own["num_experts"]} if "num_experts" in own else {}  # the usual names of one thing
    own |= known.renamed
    named = {own.get(name, name): value for name, value in config.items() if name not in known.lost}
    inside = [name.partition(".") for name in named if "." in name]
    objects: dict[str, dict[str, Any]] = {outer: dict(named.get(outer, {})) for outer, _, _ in inside}
    for outer, _, inner in inside:
        objects[outer][inner] = named.pop(f"{outer}.{inner}")
    return {**named, **objects}


def _keys(given: Given) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in given.record.keys:
        if not key.names:
            continue
        value = given.blocks if key.name == Keys.LLM.BLOCK_COUNT else given.value(key.name, key.make)
        if value is not None:
            found[key.names[0]] = value
        elif key in SIZES and key.name != Keys.Attention.HEAD_COUNT_KV:
            raise Malformed(
                "the key is missing", where=f"{given.keys.where}: {key.name.format(arch=given.record.name)}"
            )
    return found


def _biases(known: HfClass, tensors: Tensors, where: object) -> dict[str, bool]:
    """The config keys that announce biases."""

    def has(tensor: Tensor) -> bool:
        return f"{base_name(tensor).format(bid=0)}.bias" in tensors

    present = {rule.tensor for rule in known.record.tensors if rule.bias and has(rule.tensor)} - known.free
    config = {}
    for key, group in known.biases.items():
        if group <= present:
            present -= group
            if key:
                config[key] = True
        elif not key:
            raise Unsupported(f"{known.name} has biases that this file lacks", where=where)
    if present:
        names = ", ".join(sorted(f"{base_name(tensor).format(bid=0)}.bias" for tensor in present))
        raise Unsupported(f"{known.name} cannot hold {names} alone", where=where)
    return config


def token_ids(vocabulary: Vocabulary) -> dict[str, int | None]:
    """The ids in config.json. null is written out: some classes have another default."""
    always: dict[str, int | None] = dict.fromkeys(GENERATION_IDS)
    return always | {f"{role}_token_id": vocabulary.special[role] for role in ROLES if role in vocabulary.special}


def generation_config(keys: TypedKeys, vocabulary: Vocabulary) -> dict[str, Any]:
    """generation_config.json: every end of generation, and the sampling that the file suggests."""
    ends = ends_of_generation(vocabulary)
    named = token_ids(vocabulary)
    ids: dict[str, Any] = {key: named[key] for key in GENERATION_IDS if named[key] is not None}
    if len(ends) > 1:
        ids["eos_token_id"] = list(ends)
    sampling = {name: keys.optional(key, str) if make is string else keys.number(key) for key, name, make in SAMPLING}
    return {**ids, **{name: value for name, value in sampling.items() if value is not None}}


def check_keys(made: Metadata, stated: Metadata, where: object) -> None:
    """Malformed if a config.json that was made of these keys would give one of them another value than it has."""
    wrong = [
        f"{key} is {shown(stated[key].data)}, but would become {shown(value.data)}"
        for key, value in made.items()
        if key in stated and not _same(stated[key].data, value.data)
    ]
    if wrong:
        raise Malformed("these keys contradict the tensors, or each other", where=where, also=wrong)


def _same(stated: Data, made: Data) -> bool:
    """Equal; numbers that were computed may differ in the last bits, as other converters round otherwise."""
    if isinstance(stated, float) and isinstance(made, float):
        return math.isclose(stated, made, rel_tol=1e-6)
    return bool(np.array_equal(stated, made))
