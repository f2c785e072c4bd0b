"""Draft models: small models that guess the next tokens of a larger one, beside which llama.cpp runs them.

They have a file of their own, and nothing runs them alone. Source: llama.cpp's src/models/gemma4-assistant.cpp.
"""

from dataclasses import replace

from gguf.constants import Keys

from ggufsmith.convert.architecture import ConfigKey, Dims, TensorRule, named
from ggufsmith.convert.architectures.dflash import DFLASH, MUSE_GLIMMER_ASSISTANT
from ggufsmith.convert.architectures.dspark import DSPARK
from ggufsmith.convert.architectures.eagle3 import EAGLE3
from ggufsmith.convert.architectures.gemma4 import GEMMA4, both_attentions, own_kinds
from ggufsmith.convert.architectures.groups import T, without
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewTensor


def length_of_target(config: Config, dims: Dims) -> str | None:
    """A sentence about an assistant that llama.cpp does not load."""
    if dims.size("target") == dims.embd:
        return "backbone_hidden_size is hidden_size, and llama.cpp loads only assistants narrower than their model"
    return None


# Every block takes its keys and values from the last block of the same kind in the larger model.
GEMMA4_ASSISTANT = replace(
    GEMMA4,
    arch=NewArch.GEMMA4_ASSISTANT,
    classes=("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM"),
    tensors=(
        TensorRule(T.TOKEN_EMBD, "vocab embd"),
        TensorRule(T.OUTPUT_NORM, "embd"),
        TensorRule(NewTensor.NEXTN_PROJ_PRE, "embd target2"),
        TensorRule(NewTensor.NEXTN_PROJ_POST, "target embd"),
        *(TensorRule(tensor, "embd") for tensor in (T.ATTN_NORM, T.ATTN_POST_NORM, T.FFN_PRE_NORM, T.FFN_POST_NORM)),
        *both_attentions(T.ATTN_Q, "q embd", "gq embd"),
        *both_attentions(T.ATTN_OUT, "embd q", "embd gq"),
        *both_attentions(T.ATTN_Q_NORM, "head_dim", "g_head_dim"),
        TensorRule(T.FFN_GATE, "ff embd"),
        TensorRule(T.FFN_UP, "ff embd"),
        TensorRule(T.FFN_DOWN, "embd ff"),
        TensorRule(T.LAYER_OUT_SCALE, "1"),
    ),
    keys=(
        *without(
            GEMMA4.keys,
            *(Keys.LLM.FINAL_LOGIT_SOFTCAPPING, Keys.Attention.SHARED_KV_LAYERS, Keys.LLM.EXPERT_COUNT),
            *(Keys.LLM.EXPERT_USED_COUNT, Keys.LLM.EXPERT_FEED_FORWARD_LENGTH),
        ),
        ConfigKey(Keys.Attention.SHARED_KV_LAYERS, of=lambda dims: dims.blocks),
        ConfigKey(Keys.LLM.EMBEDDING_LENGTH_OUT, of=lambda dims: dims.size("target")),
        ConfigKey(Keys.LLM.NEXTN_PREDICT_LAYERS, of=lambda dims: dims.blocks),
    ),
    models="the assistants of Gemma 4, which draft for it",
    fused=(named("pre_projection", NewTensor.NEXTN_PROJ_PRE), named("post_projection", NewTensor.NEXTN_PROJ_POST)),
    require={
        **GEMMA4.require,
        "attention_k_eq_v": (False, True),  # of the larger model; these have no keys
        **dict.fromkeys(("enable_moe_block", "use_double_wide_mlp"), (False,)),
        "hidden_size_per_layer_input": (0,),
    },
    drop={"masked_embedding.": "an index of the vocabulary, without which llama.cpp scores every token"},
    sizes={
        **GEMMA4.sizes,
        "target": lambda config: config.integer("backbone_hidden_size", default=1536) or 0,
        "target2": lambda config: 2 * (config.integer("backbone_hidden_size", default=1536) or 0),
    },
    kinds=lambda config, blocks: [
        "full" if kind == "full_attention" else "window" for kind in own_kinds(config, blocks)
    ],
    check=length_of_target,
)

RECORDS = (GEMMA4_ASSISTANT, EAGLE3, DFLASH, MUSE_GLIMMER_ASSISTANT, DSPARK)
