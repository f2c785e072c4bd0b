"""Dense models whose feed-forward has an activation, or norms, of their own."""

from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.convert.architecture import Architecture, Number, Rope
from ggufsmith.convert.architectures.dense import UNGATED
from ggufsmith.convert.architectures.groups import (
    ATTENTION,
    EMBEDDINGS,
    HEAD_NORMS,
    NORMS,
    OUTPUT_OR_EMBEDDING,
    ROTARY,
    SIZES,
    STATED_HEAD_SIZE,
    VOCAB_SIZE,
)

APERTUS = Architecture(
    MODEL_ARCH.APERTUS,
    ("ApertusForCausalLM",),
    tensors=(
        *EMBEDDINGS[:2],
        OUTPUT_OR_EMBEDDING,
        *NORMS,
        *(replace(rule, bias=False) for rule in (*ATTENTION, *UNGATED)),
        *HEAD_NORMS,
    ),
    keys=(*SIZES, *STATED_HEAD_SIZE, VOCAB_SIZE, ROTARY),
    rope=Rope(theta=12000000.0, scaling=("linear", "yarn", "llama3")),
    require={
        "hidden_act": ("xielu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "qk_norm": (True,),
        "post_norm": (False,),
    },
    defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 65536},
    numbers=(
        Number("mlp.act_fn.alpha_n", Keys.xIELU.ALPHA_N, (1,)),
        Number("mlp.act_fn.alpha_p", Keys.xIELU.ALPHA_P, (1,)),
        Number("mlp.act_fn.beta", Keys.xIELU.BETA),
        Number("mlp.act_fn.eps", Keys.xIELU.EPS),
    ),
    models="Apertus",
)

RECORDS = (APERTUS,)
