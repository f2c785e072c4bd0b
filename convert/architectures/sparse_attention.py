"""Sparse attention that an indexer chooses the tokens for: DeepSeek-V3.2 and GLM-5, beside latent attention.

Sources: arXiv 2512.02556; src/models/deepseek32.cpp and glm-dsa.cpp of llama.cpp, whose indexers rotate differently.
"""

from collections.abc import Sequence
from dataclasses import replace

from gguf.constants import MODEL_ARCH, Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import booleans, u32
from ggufsmith.convert.architecture import Architecture, ConfigKey, Dims, TensorRule
from ggufsmith.convert.architectures.groups import OPTIONAL, T
from ggufsmith.convert.architectures.latent import DEEPSEEK3
from ggufsmith.convert.architectures.moe import (
    DOUBLE,
    LEADING,
    NEXTN,
    NEXTN_COUNT,
    led,
    only_first_dense,
    whole,
    with_mtp,
)
from ggufsmith.convert.config import Config
from ggufsmith.convert.gguf_names import NewArch, NewKeys

INDEXER = (
    TensorRule(T.INDEXER_K_NORM, "index_dim", bias=True),
    TensorRule(T.INDEXER_PROJ, "index_heads embd"),
    TensorRule(T.INDEXER_ATTN_K, "index_dim embd"),
    TensorRule(T.INDEXER_ATTN_Q_B, "index_q q_rank"),
)
FIRST = 2  # where config.json is silent on which blocks have an indexer: behind which they take turns
LONG = 1 << 20  # tokens of context from which on llama.cpp assumes the turns of GLM-5.2


def indexers(config: Config) -> list[bool]:
    """Which blocks have an indexer; the others take what the last of these chose. As GlmMoeDsaConfig has it."""
    blocks = whole(config, "num_hidden_layers")
    stated = config.items_of("indexer_types", str, blocks)
    period, offset = max(whole(config, "index_topk_freq", 1), 1), whole(config, "index_skip_topk_offset", FIRST)
    pattern = config.first("index_topk_pattern")
    if stated:
        return [kind == "full" for kind in stated]
    if isinstance(pattern, str) and len(pattern) == blocks:
        return [letter == "F" for letter in pattern]
    if pattern is not None:
        raise Malformed(f"index_topk_pattern must be a letter for every layer, not {pattern!r:.80}", where=config.path)
    return [max(block - offset + 1, 0) % period == 0 for block in range(blocks)]


def indexer_types(config: Config, dims: Dims) -> list[bool] | None:
    """The same, where config.json says it or llama.cpp would assume something else."""
    found = indexers(config)
    needed = config.first("indexer_types") or not all(found) or whole(config, "max_position_embeddings") >= LONG
    return found if needed else None


def indexed(config: Config, blocks: int) -> Sequence[str]:
    """Also the word indexer for the blocks that have one."""
    found = indexers(config)
    return [f"{kind}{' indexer' * found[k] if k < len(found) else ''}" for k, kind in enumerate(led(config, blocks))]


DEEPSEEK32 = replace(
    DEEPSEEK3,
    arch=NewArch.DEEPSEEK32,
    classes=("DeepseekV32ForCausalLM",),
    tensors=(*DEEPSEEK3.tensors, *INDEXER, *NEXTN),
    keys=(
        *(LEADING if key.name == LEADING.name else key for key in DEEPSEEK3.keys),
        ConfigKey(Keys.Attention.Indexer.HEAD_COUNT, u32, ("index_n_heads",)),
        ConfigKey(Keys.Attention.Indexer.KEY_LENGTH, u32, ("index_head_dim",)),
        ConfigKey(Keys.Attention.Indexer.TOP_K, u32, ("index_topk",)),
        NEXTN_COUNT,
    ),
    models="DeepSeek-V3.2",
    require={**DEEPSEEK3.require, "indexer_rope_interleave": (False,)},
    defaults={**DEEPSEEK3.defaults, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048},
    sizes={
        **DEEPSEEK3.sizes,
        **DOUBLE,
        "index_heads": lambda config: whole(config, "index_n_heads"),
        "index_dim": lambda config: whole(config, "index_head_dim"),
        "index_q": lambda config: whole(config, "index_n_heads") * whole(config, "index_head_dim"),
    },
    kinds=with_mtp(led),
    check=lambda config, dims: only_first_dense(config),
    beyond="",
    appended=True,
)
GLM_DSA = replace(
    DEEPSEEK32,
    arch=MODEL_ARCH.GLM_DSA,
    classes=("GlmMoeDsaForCausalLM",),
    tensors=(
        *DEEPSEEK3.tensors,
        *(replace(rule, on="indexer") for rule in INDEXER),
        *(replace(rule, on="mtp", need=OPTIONAL) for rule in INDEXER),
        *NEXTN,
    ),
    keys=(*DEEPSEEK32.keys, ConfigKey(NewKeys.INDEXER_TYPES, booleans, computed=indexer_types)),
    models="GLM-5, GLM-5.2",
    require={**DEEPSEEK3.require, "indexer_rope_interleave": (True,)},
    defaults={**DEEPSEEK32.defaults, "max_position_embeddings": 202752, "rms_norm_eps": 1e-5, "index_n_heads": 32},
    kinds=with_mtp(indexed),
)

RECORDS: tuple[Architecture, ...] = (DEEPSEEK32, GLM_DSA)
