"""Gemma 3n: several streams of hidden states (AltUp), a low-rank path beside attention (LAuReL), embeddings per layer.

The last blocks take keys and values from earlier ones: those behind the 20th, as llama.cpp has it built in.
"""

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.values import booleans, f32, f32s, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, Rope, TensorRule, named
from ggufsmith.convert.architectures.gemma4 import GEMMA4, NORMS, number_or_array, per_layer, shared
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    FEED_FORWARD,
    GELU,
    HEAD_NORMS,
    HEAD_SIZE,
    SIZES,
    T,
    layer_types,
    without,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.ops import Op
from ggufsmith.convert.reorder import PaddedRows

OWN, SPARSE, SPARSITY = 20, 10, 0.95  # blocks with keys of their own; blocks whose feed-forward is sparse, and how much
DEVIATIONS = (
    1.6448533535003662  # of a normal distribution, below which 95 % of it are: src/models/models.h of llama.cpp
)
PERIOD = 5


def sparsity(config: Config, blocks: int) -> list[float]:
    """Which part of a feed-forward is left out, for every block."""
    first = SPARSE if blocks > SPARSE else 0
    return config.numbers_of("activation_sparsity_pattern", blocks) or [SPARSITY] * first + [0.0] * (blocks - first)


def deviations(config: Config, dims: Dims) -> list[float]:
    """The same as standard deviations."""
    return [DEVIATIONS if part else float("-inf") for part in sparsity(config, dims.blocks)]


def lengths(config: Config, dims: Dims) -> int | list[int]:
    """Of the feed-forward: one for all blocks, or a list where the config has one."""
    return [dims.ff] * dims.blocks if isinstance(config.first("intermediate_size"), list) else dims.ff


def built_in(config: Config, dims: Dims) -> str | None:
    """A sentence if the config is not what llama.cpp's graph has built in, else None."""
    if dims.blocks - shared(config) != min(OWN, dims.blocks):
        return f"llama.cpp assumes that {OWN} blocks have keys and values of their own"
    sparse = min(SPARSE, dims.blocks)
    if sparsity(config, dims.blocks) != [SPARSITY] * sparse + [0.0] * (dims.blocks - sparse):
        return f"activation_sparsity_pattern is not {SPARSITY} in the first {SPARSE} blocks, as llama.cpp assumes"
    kinds = layer_types(config, dims.blocks, PERIOD)[OWN - 2 : OWN]
    if shared(config) and kinds != ["sliding_attention", "full_attention"]:
        return (
            "layer_types does not end its own keys and values with a window and a full attention, as llama.cpp assumes"
        )
    return None


def kinds(config: Config, blocks: int) -> list[str]:
    """kv or shared."""
    return ["kv" if block < blocks - shared(config) else "shared" for block in range(blocks)]


def padded(dims: Dims) -> Op:
    """The op of the embeddings for every layer, which have no rows for the tokens of pictures and sound."""
    return PaddedRows(dims.size("ple_vocab"), max(dims.vocab, dims.size("ple_vocab")))


GEMMA3N = Architecture(
    MODEL_ARCH.GEMMA3N,
    ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd"),
        TensorRule(T.PER_LAYER_TOKEN_EMBD, "ple_vocab ple_all", padded),
        TensorRule(T.PER_LAYER_MODEL_PROJ, "ple_all embd"),
        TensorRule(T.PER_LAYER_PROJ_NORM, "ple"),
        TensorRule(T.ALTUP_PROJ, "others embd embd", stacked=True),
        TensorRule(T.ALTUP_UNEMBD_PROJ, "others embd embd", stacked=True),
        *(TensorRule(tensor, "embd") for tensor in NORMS),
        *(TensorRule(rule.tensor, rule.shape) for rule in (ATTENTION[0], ATTENTION[3], HEAD_NORMS[0])),
        *(TensorRule(rule.tensor, rule.shape, on="kv") for rule in (*ATTENTION[1:3], HEAD_NORMS[1])),
        *(TensorRule(rule.tensor, rule.shape, on="shared", unused=True) for rule in (*ATTENTION[1:3], HEAD_NORMS[1])),
        *(TensorRule(rule.tensor, rule.shape) for rule in FEED_FORWARD),
        TensorRule(T.PER_LAYER_INP_GATE, "ple embd"),
        TensorRule(T.PER_LAYER_PROJ, "embd ple"),
        TensorRule(T.PER_LAYER_POST_NORM, "embd"),
        TensorRule(T.ALTUP_CORRECT_COEF, "streams streams"),
        TensorRule(T.ALTUP_CORRECT_SCALE, "embd"),
        TensorRule(T.ALTUP_PREDICT_COEF, "streams2 streams"),
        TensorRule(T.ALTUP_ROUTER, "streams embd"),
        TensorRule(T.ALTUP_ROUTER_NORM, "embd"),
        TensorRule(T.LAUREL_L, "rank embd"),
        TensorRule(T.LAUREL_R, "embd rank"),
        TensorRule(T.LAUREL_POST_NORM, "embd"),
    ),
    keys=(
        *without(SIZES, Keys.LLM.FEED_FORWARD_LENGTH),
        ConfigKey(Keys.LLM.FEED_FORWARD_LENGTH, number_or_array, computed=lengths),
        *HEAD_SIZE,
        ConfigKey(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, f32, ("final_logit_softcapping",)),
        ConfigKey(Keys.Attention.SLIDING_WINDOW, u32, ("sliding_window",)),
        ConfigKey(
            Keys.Attention.SLIDING_WINDOW_PATTERN,
            booleans,
            computed=lambda config, dims: [
                kind == "sliding_attention" for kind in layer_types(config, dims.blocks, PERIOD)
            ],
        ),
        ConfigKey(Keys.LLM.ALTUP_ACTIVE_IDX, u32, ("altup_active_idx",)),
        ConfigKey(Keys.LLM.ALTUP_NUM_INPUTS, u32, ("altup_num_inputs",)),
        ConfigKey(
            Keys.LLM.EMBD_LENGTH_PER_LAYER_INP, names=("hidden_size_per_layer_input",), of=lambda d: d.size("ple")
        ),
        ConfigKey(Keys.Attention.SHARED_KV_LAYERS, names=("num_kv_shared_layers",), computed=lambda c, dims: shared(c)),
        ConfigKey(Keys.LLM.ACTIVATION_SPARSITY_SCALE, f32s, computed=deviations),
    ),
    rope=Rope(theta=1e6, local_theta=10000.0, scaling=()),
    fused=(
        named(".altup_projections.experts", T.ALTUP_PROJ),
        named(".altup_unembed_projections.experts", T.ALTUP_UNEMBD_PROJ),
    ),
    spellings={r"(altup_(?:unembed_)?projections)\.([0-9]+)": r"\1.experts.\2"},
    require={
        **GELU,
        "attention_bias": (False,),
        "altup_active_idx": (0,),
        "altup_num_inputs": (4,),
        "altup_correct_scale": (True,),
        "laurel_rank": (64,),
        "hidden_size_per_layer_input": (256,),
    },
    defaults={
        "tie_word_embeddings": True,
        "max_position_embeddings": 32768,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "num_kv_shared_layers": 15,
        "vocab_size_per_layer_input": 262144,
        "rms_norm_eps": 1e-6,
        "altup_active_idx": 0,
        "altup_num_inputs": 4,
        "laurel_rank": 64,
        "hidden_size_per_layer_input": 256,
    },
    tied={"lm_head.weight": T.TOKEN_EMBD},
    drop=GEMMA4.drop,
    sizes={
        "ple": per_layer,
        "ple_all": GEMMA4.sizes["ple_all"],
        "ple_vocab": GEMMA4.sizes["ple_vocab"],
        "streams": lambda config: 4,
        "streams2": lambda config: 16,
        "others": lambda config: 3,
        "rank": lambda config: 64,
    },
    kinds=kinds,
    check=built_in,
    models="Gemma 3n (text)",
)

RECORDS = (GEMMA3N,)
