"""Mistral's own layout: params.json and consolidated*.safetensors, whole tensors under the names of its inference code.

Query and key rows lie in pairs, as in Meta's release (see `original`), those of the vision encoder too, and most
tensors have the same names. Experts are kept apart. What params.json leaves open is taken from mistral-inference.

Sources: mistral-inference 1.6, args.py (TransformerArgs), transformer.py, transformer_layers.py, moe.py and
vision_encoder.py; for latent attention and FP8, llama.cpp's conversion/mistral.py; for images, mistral-common's
tokens/tokenizers/image.py (DATASET_MEAN).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.untrusted import read_object
from ggufsmith.convert.config import Config
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.original import HEADS, Joined, check_heads, hf_name
from ggufsmith.convert.stored import StoredTensor

CONTEXT = 32768  # of the models that come with a SentencePiece vocabulary, but for Mixtral 8x22B, whose params say it
THETA, THETA_OF_WINDOWS = 1e6, 1e4  # without rope_theta; the second for Mistral 7B v0.1, the one model with a window
SIZES = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "vocab_size")
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
HF_VERSION = "Convert the version of the model with config.json and model*.safetensors instead."
# Keys of params.json -> what their presence means. All others are read, or reported with those of config.json.
NOT_READ: Mapping[str, str] = {"multimodal": "it has an encoder of sound"}
READ = frozenset(
    (
        *(*SIZES, *LATENT, "norm_eps", "rope_theta", "sliding_window", "_sliding_window", "moe", "model_type", "lora"),
        *("yarn", "llama_4_scaling", "vision_encoder", "quantization", "activation"),
    )
)
RENAMED = {"max_seq_len": "max_position_embeddings", "tied_embeddings": "tie_word_embeddings"}
IGNORED = frozenset(("max_batch_size", "use_cache", "use_biases", "causal", "ragged_attention"))
# Keys of "moe" -> what DeepSeek's configs call them. How experts are spread over processors is nothing to a file.
ROUTING: Mapping[str, str] = {
    "num_experts": "n_routed_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
    "routed_scale": "routed_scaling_factor",
    "num_shared_experts": "n_shared_experts",
    "num_expert_groups": "n_group",
    "num_expert_groups_per_tok": "topk_group",
    "first_k_dense_replace": "first_k_dense_replace",
}
# Keys of "vision_encoder" -> what the configs of Pixtral call them.
VISION: Mapping[str, str] = {
    **{key: key for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
    **{key: key for key in ("image_size", "patch_size", "num_channels", "rope_theta", "head_dim")},
}
DATASET_MEAN = [0.48145466, 0.4578275, 0.40821073]
DATASET_STD = [0.26862954, 0.26130258, 0.27577711]
MERGED = "patch_merge"  # the projector that merges patches
# What Hugging Face calls the modules that Meta's release does not have; in these, w1 to w3 are called as in `MATRICES`.
MODULES: Mapping[str, str] = {
    "attention.wq_a": "self_attn.q_a_proj",
    "attention.wq_b": "self_attn.q_b_proj",
    "attention.q_a_norm": "self_attn.q_a_layernorm",
    "attention.wkv_a_with_mqa": "self_attn.kv_a_proj_with_mqa",
    "attention.kv_a_norm": "self_attn.kv_a_layernorm",
    "attention.wkv_b": "self_attn.kv_b_proj",
    "gate": "mlp.gate",
}
MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj", "wq": "q_proj", "wk": "k_proj", "wv": "v_proj"}
MATRICES["wo"] = "o_proj"
SEEING: Mapping[str, str] = {
    "vision_encoder.": "vision_tower.",
    "vision_language_adapter.w_in.": "multi_modal_projector.linear_1.",
    "vision_language_adapter.w_out.": "multi_modal_projector.linear_2.",
    "patch_merger.": "multi_modal_projector.patch_merger.",
    "pre_mm_projector_norm.": "multi_modal_projector.norm.",
}
BLOCK = re.compile(r"layers\.(\d+)\.(.+)\.(\w+)")
FEED_FORWARD = re.compile(r"(experts\.\d+|shared_experts)\.(w[123])")


def is_mistral(params: Mapping[str, Any]) -> bool:
    """Whether a params.json is one of Mistral's, and not one of Meta's."""
    return "hidden_dim" in params or "moe" in params


def mistral_config(path: Path) -> tuple[Config, tuple[str, ...]]:
    """params.json in the words of config.json, and sentences on what it leaves open.

    Unsupported: a model that hears, and a LoRA of mistral-finetune. Malformed: sizes that are missing or impossible.
    """
    params = Config(read_object(path, inside=path.parent), path)
    _check(params)
    sizes = {key: params.integer(key) or 0 for key in SIZES}
    wrong = [key for key, value in sizes.items() if value <= 0]
    if wrong:
        raise Malformed(f"{', '.join(wrong)} must be positive numbers", where=path)
    windows = params.first("sliding_window", "_sliding_window")
    if isinstance(windows, list):
        raise Unsupported("its layers have different sliding windows", where=path, fix=HF_VERSION)
    theta, notes = params.number("rope_theta"), []
    if theta is None:
        theta = THETA if windows is None else THETA_OF_WINDOWS
        notes.append(f"params.json has no rope_theta: {theta:g} is assumed, as mistral-inference does")
    context = params.integer("max_position_embeddings", "max_seq_len")
    if context is None:
        context = CONTEXT
        notes.append(f"params.json does not state the context length: {CONTEXT} is assumed")
    values: dict[str, Any] = {
        "hidden_size": sizes["dim"],
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "head_dim": sizes["head_dim"],
        "intermediate_size": sizes["hidden_dim"],
        "vocab_size": sizes["vocab_size"],
        "rms_norm_eps": params.number("norm_eps"),
        "rope_theta": theta,
        "max_position_embeddings": context,
        "sliding_window": windows,
        "hidden_act": params.first("activation") or "silu",
        "tie_word_embeddings": bool(params.first("tied_embeddings")),
        **_scaling(params),
        **_vision(params),
        **_experts(params),
    }
    values["architectures"] = [_class_of(params)]
    known = {*READ, *RENAMED, *IGNORED, *NOT_READ}
    return Config({**values, **{key: params[key] for key in params if key not in known}}, path), tuple(notes)


def _class_of(params: Config) -> str:
    """The class of Hugging Face that computes the same; of the largest models, the name that vLLM has for it."""
    sees, scaled = bool(params.mapping("vision_encoder")), bool(params.mapping("llama_4_scaling"))
    if params.first("kv_lora_rank") is not None:
        return "MistralLarge3ForCausalLM"
    if params.mapping("moe"):
        return "MixtralForCausalLM"
    if scaled:
        return "Mistral3ForConditionalGeneration" if sees else "Ministral3ForCausalLM"
    return "LlavaForConditionalGeneration" if sees else "MistralForCausalLM"


def _scaling(params: Config) -> dict[str, Any]:
    """The rotary embedding, if it is scaled, and how attention is by position."""
    yarn, by_position = params.mapping("yarn"), params.mapping("llama_4_scaling")
    if not yarn and not by_position:
        return {}
    first = "original_max_position_embeddings"
    if not yarn or not by_position or by_position.get(first, yarn.get(first)) != yarn.get(first):
        raise Unsupported(
            f"yarn and llama_4_scaling must have the same {first}, but they are {dict(yarn)} and {dict(by_position)}",
            where=params.path,
            fix=HF_VERSION,
        )
    found = {"factor": "factor", "beta_fast": "beta", "beta_slow": "alpha", first: first}
    fields = {name: yarn.get(key) for name, key in found.items()}
    fields |= {
        "mscale_all_dim": 0.0 if yarn.get("apply_scale") else 1.0,
        "llama_4_scaling_beta": by_position.get("beta"),
    }
    return {"rope_parameters": {"rope_type": "yarn", **{k: v for k, v in fields.items() if v is not None}}}


def _experts(params: Config) -> dict[str, Any]:
    """How tokens are routed to experts, and latent attention."""
    moe = params.mapping("moe")
    if params.first("kv_lora_rank") is None:
        return {"num_local_experts": moe.get("num_experts"), "num_experts_per_tok": moe.get("num_experts_per_tok")}
    if moe.get("route_every_n", 1) != 1:
        raise Unsupported(
            f"moe.route_every_n is {moe['route_every_n']!r:.40}, not 1", where=params.path, fix=HF_VERSION
        )
    return {
        **{key: params.first(key) for key in LATENT},
        **{name: moe.get(key) for key, name in ROUTING.items()},
        "norm_topk_prob": True,
        "scoring_func": "softmax",
    }


def _vision(params: Config) -> dict[str, Any]:
    """The vision encoder, and what stands between it and the text model."""
    encoder = params.mapping("vision_encoder")
    if not encoder:
        return {}
    merged = encoder.get("mm_projector_id") == MERGED
    if params.mapping("llama_4_scaling") and not merged:
        raise Unsupported("its projector does not merge patches", where=params.path, fix=HF_VERSION)
    section = {name: encoder.get(key) for key, name in VISION.items()}
    return {
        "vision_config": {
            **{key: value for key, value in section.items() if value is not None},
            "model_type": "pixtral",
            "hidden_act": "silu",
            "layer_norm_eps": params.number("norm_eps"),
            "image_mean": DATASET_MEAN,
            "image_std": DATASET_STD,
        },
        "spatial_merge_size": encoder.get("spatial_merge_size", 2) if merged else None,
        "multimodal_projector_bias": bool(encoder.get("adapter_bias", True)),
    }


def quantization_of(path: Path) -> Config:
    """How params.json says that weights are quantized, as config.json would. Unsupported for an unknown way."""
    stated = Config(read_object(path, inside=path.parent), path).mapping("quantization")
    if not stated or stated.get("qformat_weight") == "fp8_e4m3":
        return Config({}, path)  # the scales beside the weights say the rest
    if "quant_method" not in stated:
        raise Unsupported(
            f"its weights are quantized in a way that is not known here: {dict(stated)!r:.200}",
            where=path,
            fix=HF_VERSION,
        )
    return Config({"quantization_config": stated}, path)


def _check(params: Config) -> None:
    lora = params.first("lora")
    if isinstance(lora, Mapping) and lora.get("enable", True):
        raise Unsupported(
            "this is a LoRA adapter of mistral-finetune, which is not supported",
            where=params.path.parent,
            fix="Merge it with mistral-finetune (python -m utils.merge_lora), put the result beside the params.json of "
            "its base as consolidated.safetensors, and convert that.",
        )
    why = next((why for key, why in NOT_READ.items() if params.first(key)), None)
    quantization_of(params.path)
    kind = params.first("model_type")
    if kind not in (None, "transformer"):
        why = f"its model_type is {kind!r}"
    if params.first("use_biases"):
        why = "its layers have biases"
    if why is not None:
        raise Unsupported(f"{why}, which is not supported in Mistral's own layout", where=params.path, fix=HF_VERSION)


def to_hugging_face(tensors: Iterable[StoredTensor], config: Config) -> dict[str, StoredTensor]:
    """The tensors under Hugging Face's names, query and key rows in halves. Malformed: they are not that many heads."""
    made: dict[str, StoredTensor] = {}
    seeing = config.mapping("vision_config")
    for source in tensors:
        key = next((key for end, key in HEADS.items() if source.name.endswith(end)), None)
        name = name_of(source.name)
        if key is not None:
            sees = source.name.startswith(next(iter(SEEING)))
            heads = seeing.get("num_attention_heads") if sees else config[key]
            source = _in_halves(name, source, heads)
        made[name] = replace(source, name=name)
    return made


def name_of(name: str) -> str:
    """What Hugging Face calls a tensor; one that is not known stays."""
    for before, theirs in SEEING.items():
        if name.startswith(before):
            return ".".join(MATRICES.get(part, part) for part in (theirs + name.removeprefix(before)).split("."))
    if found := BLOCK.fullmatch(name):
        block, module, part = found.groups()
        if expert := FEED_FORWARD.fullmatch(module):
            return f"model.layers.{block}.mlp.{expert[1]}.{MATRICES[expert[2]]}.{part}"
        if module in MODULES:
            return f"model.layers.{block}.{MODULES[module]}.{part}"
    return hf_name(name)


def _in_halves(name: str, source: StoredTensor, heads: object) -> StoredTensor:
    if not isinstance(heads, int) or heads <= 0:
        raise Malformed(f"num_attention_heads is {heads!r:.40}, not a positive number", where=source.path)
    if source.dtype not in ("F16", "BF16", "F32"):
        raise Unsupported(f"{source.name} is {source.dtype}", where=source.path, fix=HF_VERSION)
    check_heads(source, 1, heads)
    weights = Joined((source,), 0, heads)
    return DequantizedTensor(name, source.shape, "F32", source.path, 0, source.nbytes, weights, source.stored)
