"""Mistral's own layout: params.json and consolidated*.safetensors, whole tensors under the names of its inference code.

Query and key rows lie in pairs, as in Meta's release (see `original`), and the tensors have the same names. Mixtures of
experts keep each expert's matrices apart. What params.json leaves open is taken from mistral-inference.

Source: mistral-inference 1.6, args.py (TransformerArgs), transformer.py, transformer_layers.py, moe.py.
"""

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
HF_VERSION = "Convert the version of the model with config.json and model*.safetensors instead."
# Keys of params.json -> what their presence means. All others are read, or reported with those of config.json.
NOT_READ: Mapping[str, str] = {
    "quantization": "its weights are quantized in Mistral's own way",
    "vision_encoder": "it has a vision encoder",
    "multimodal": "it has a vision encoder",
    "yarn": "its rotary embedding is scaled (yarn)",
    "llama_4_scaling": "its attention is scaled by position (llama_4_scaling)",
}
READ = frozenset((*SIZES, "norm_eps", "rope_theta", "sliding_window", "_sliding_window", "moe", "model_type", "lora"))
RENAMED = {"max_seq_len": "max_position_embeddings", "tied_embeddings": "tie_word_embeddings"}
IGNORED = frozenset(("max_batch_size", "use_cache", "use_biases", "causal"))


def is_mistral(params: Mapping[str, Any]) -> bool:
    """Whether a params.json is one of Mistral's, and not one of Meta's."""
    return "hidden_dim" in params or "moe" in params


def mistral_config(path: Path) -> tuple[Config, tuple[str, ...]]:
    """params.json in the words of config.json, and sentences on what it leaves open.

    Unsupported: a model that is more than a transformer of text, and a LoRA of mistral-finetune. Malformed: sizes that
    are missing or impossible.
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
    moe = params.mapping("moe")
    theta, notes = params.number("rope_theta"), []
    if theta is None:
        theta = THETA if windows is None else THETA_OF_WINDOWS
        notes.append(f"params.json has no rope_theta: {theta:g} is assumed, as mistral-inference does")
    context = params.integer("max_position_embeddings", "max_seq_len")
    if context is None:
        context = CONTEXT
        notes.append(f"params.json does not state the context length: {CONTEXT} is assumed")
    values: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if moe else "MistralForCausalLM"],
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
        "hidden_act": "silu",
        "tie_word_embeddings": bool(params.first("tied_embeddings")),
    }
    if moe:
        values |= {"num_local_experts": moe.get("num_experts"), "num_experts_per_tok": moe.get("num_experts_per_tok")}
    known = {*READ, *RENAMED, *IGNORED, *NOT_READ}
    return Config({**values, **{key: params[key] for key in params if key not in known}}, path), tuple(notes)


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
    kind = params.first("model_type")
    if kind not in (None, "transformer"):
        why = f"its model_type is {kind!r}"
    if params.first("use_biases"):
        why = "its layers have biases"
    if why is not None:
        raise Unsupported(f"{why}, which is not supported in Mistral's own layout", where=params.path, fix=HF_VERSION)


def to_hugging_face(tensors: Iterable[StoredTensor], config: Config) -> dict[str, StoredTensor]:
    """The tensors under Hugging Face's names, query and key rows from pairs to halves. Unsupported for FP8 weights."""
    made: dict[str, StoredTensor] = {}
    for source in tensors:
        name = hf_name(source.name)
        heads = next((config[key] for end, key in HEADS.items() if source.name.endswith(end)), None)
        if heads is not None:
            source = _in_halves(name, source, heads)
        made[name] = replace(source, name=name)
    return made


def _in_halves(name: str, source: StoredTensor, heads: int) -> StoredTensor:
    if source.dtype not in ("F16", "BF16", "F32"):
        raise Unsupported(f"{source.name} is {source.dtype}", where=source.path, fix=HF_VERSION)
    check_heads(source, 1, heads)
    weights = Joined((source,), 0, heads)
    return DequantizedTensor(name, source.shape, "F32", source.path, 0, source.nbytes, weights, (source,))
