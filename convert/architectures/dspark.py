"""DSpark: DFlash with a head that corrects each guess of a block by the one before it, and one that judges them.

The output may be for some tokens only, as that of EAGLE-3; a whole one is that of the larger model, and left out.

Source: llama.cpp's src/models/dflash.cpp and conversion/qwen.py (DSparkModel).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufsmith.container.values import boolean
from ggufsmith.convert.architecture import ConfigKey, Dims, Fused, TensorRule, named
from ggufsmith.convert.architectures.dflash import DFLASH, LAYERS, UNTRAINED, flat
from ggufsmith.convert.architectures.eagle3 import TOKENS
from ggufsmith.convert.architectures.groups import OPTIONAL, T, stated_flag
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewKeys, NewTensor

INNER, AUXILIARY = "transformer_layer_config", "aux_hidden_state_layer_ids"


def flat_dspark(config: Config) -> Mapping[str, Any]:
    """What is said of drafting, in one object, whichever of the two ways a config has.

    One names the layers whose outputs are read, as DFlash does, and the other those whose inputs are.
    """
    inner, nested = config.mapping(INNER), config.mapping("dflash_config")
    anchored = config.first("sample_from_anchor")
    found = {**inner, **flat(config.replaced(inner))}
    found["sample_from_anchor"] = not inner and config.first(AUXILIARY) is None if anchored is None else anchored
    if not nested and config.first(AUXILIARY) is not None:
        found[LAYERS] = [layer - 1 for layer in config.items_of(AUXILIARY, int)]
    return found


def kind(config: Config) -> str:
    """Whether it can guess only some tokens, and whether its embedding is not meant."""
    whole = config.mapping(INNER).get("vocab_size", config.first("vocab_size"))
    guessed = config.integer("draft_vocab_size")
    words = (
        "some" if guessed not in (None, whole) else "",
        "shared" if config.first("has_embed_tokens") is False else "",
    )
    return " ".join(filter(None, words))


def narrower(dims: Dims) -> bool:
    """Whether it can guess only some tokens."""
    return dims.size("draft_vocab") != dims.vocab


WHOLE = {"lm_head.": "the output of the larger model is meant, as the draft can guess every token"}
DSPARK = replace(
    DFLASH,
    classes=("Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel", "LingDSparkModel"),
    tensors=(
        *(rule for rule in DFLASH.tensors if rule.tensor is not T.OUTPUT),
        TensorRule(T.OUTPUT, "draft_vocab embd", when=narrower),
        replace(TOKENS, when=narrower),
        TensorRule(NewTensor.DSPARK_MARKOV_W1, "vocab markov"),
        TensorRule(NewTensor.DSPARK_MARKOV_W2, "draft_vocab markov"),
        TensorRule(NewTensor.DSPARK_CONF_PROJ, "1 judged", need=OPTIONAL, bias=True),
    ),
    keys=(
        *DFLASH.keys,
        ConfigKey(NewKeys.SAMPLE_FROM_ANCHOR, boolean, computed=stated_flag("sample_from_anchor")),
    ),
    models="DSpark draft models",
    fused=(
        *DFLASH.fused,
        named("markov_head.markov_w1", NewTensor.DSPARK_MARKOV_W1),
        named("markov_head.markov_w2", NewTensor.DSPARK_MARKOV_W2),
        named("confidence_head.proj", NewTensor.DSPARK_CONF_PROJ),
        Fused("d2t", None, ((NewTensor.D2T, None),), ""),
    ),
    require={**DFLASH.require, "markov_head_type": ("vanilla",)},
    drop={**DFLASH.drop, "t2d": "which tokens of the larger model it can guess, which d2t says as well", **WHOLE},
    derived=flat_dspark,
    sizes={
        **DFLASH.sizes,
        "draft_vocab": lambda config: config.integer("draft_vocab_size", "vocab_size") or 0,
        "markov": lambda config: config.integer("markov_rank") or 0,
        "judged": lambda config: (config.integer("hidden_size") or 0) + (config.integer("markov_rank") or 0),
    },
    variant=kind,
    variants={},
)
SOME = {reason: why for reason, why in DSPARK.drop.items() if reason not in WHOLE}
DSPARK = replace(
    DSPARK,
    variants={
        "some": replace(DSPARK, drop=SOME),
        "shared": replace(DSPARK, drop={**DSPARK.drop, **UNTRAINED}),
        "some shared": replace(DSPARK, drop={**SOME, **UNTRAINED}),
    },
)
