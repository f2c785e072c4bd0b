"""Which format a mixture gives to which tensor, as a table.

The facts are llama.cpp's (src/llama-quant.cpp, October 2026; described in ggml-org/llama.cpp#1684 and its successors):
tensors whose error hurts most get more bits, at the ends of the model more than in the middle. For each role the first
row that names the file type and whose conditions hold decides; where none does, the tensor gets the file type's base.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ggufsmith.quantize.recipes.filetypes import FILE_TYPES

# ---- roles ----

# A role is decided by the first fragment that the tensor's name contains.
FRAGMENTS = (
    ("attn_qkv.weight", "attn_qkv"),
    ("attn_kv_b.weight", "attn_kv_b"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
EXACT = {
    "output.weight": "output",
    "token_embd.weight": "token_embd",
    "per_layer_token_embd.weight": "token_embd",
}
ROLES = ("token_embd", "output", *(role for _, role in FRAGMENTS), "other")
# A fused QKV matrix holds the values too, and the compressed KV of MLA expands into them.
VALUES = frozenset({"attn_v", "attn_qkv", "attn_kv_b"})
BLOCK = re.compile(r"blk\.([0-9]{1,9})\.")  # names come from anywhere: no number is larger


def role_of(name: str) -> str:
    """What a tensor is for, by its name: attn_v, ffn_down, token_embd, ..."""
    return EXACT.get(name) or next((role for fragment, role in FRAGMENTS if fragment in name), "other")


def block_of(name: str) -> int | None:
    """The layer in a tensor's name."""
    found = BLOCK.match(name)
    return int(found[1]) if found else None


# ---- tensors that stay as they are ----

# Norms, routers, small or position-dependent tables, convolutions, and what the graphs read in full precision.
KEPT_FRAGMENTS = (
    # every architecture
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "position_embd",
    "token_types.weight",
    "attn_rel_b.weight",
    # Gemma 3n
    "altup",
    "laurel",
    "per_layer_model_proj",
    # state-space models, LFM2
    "ssm_conv1d",
    "shortconv.conv.weight",
    # sparse attention of MiniMax
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    # RWKV
    "time_mix_first.weight",
    *(f"time_mix_{part}.weight" for part in "w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2 decay_w1 decay_w2 lerp_fused".split()),
    # vision and audio
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
KEPT_BY_ARCHITECTURE = {
    "clip": [".conv_dw."],  # the graphs of audio encoders read float32; llama-quantize itself fails on them
    "glm5-next": (
        "hc_ indexer.attn_q_b indexer.attn_k indexer.proj indexer_compressor_gate indexer_compressor_ape "
        "ssm_f_a.weight ssm_f_b.weight ssm_g_a.weight ssm_g_b.weight ssm_beta.weight attn_kv_a_mqa.weight "
        "attn_k_b.weight attn_v_b.weight"
    ).split(),
}


def kept(name: str, shape: tuple[int, ...], architecture: str) -> str | None:
    """Why this tensor is never quantized; None if it may be. `shape`: slowest axis first."""
    first = next((axis for axis, length in enumerate(shape) if length > 1), len(shape) - 1)
    if len(shape) - first < 2:
        return "a vector"
    if not name.endswith("weight"):
        return "not a weight"
    fragments = (*KEPT_FRAGMENTS, *KEPT_BY_ARCHITECTURE.get(architecture, ()))
    found = next((fragment for fragment in fragments if fragment in name), None)
    return f"kept: {found.strip('._')}" if found else None


# ---- what a rule can look at ----


@dataclass(frozen=True)
class Facts:
    """What the rules need to know of a model. `importance`: there is an importance matrix."""

    architecture: str
    blocks: int
    heads: int = 0
    kv_heads: int = 0
    experts: int = 0
    importance: bool = False

    @property
    def sharing(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """As llama.cpp sizes models: by the number of layers."""
        if self.architecture in ("llama", "llama-embed"):
            return self.blocks == 80 and self.experts != 8 and self.heads != self.kv_heads
        return self.blocks == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.architecture)


@dataclass(frozen=True)
class RulePlace:
    """Where a tensor stands.

    index:   its layer; without experts the number of tensors of its role before it, which is the same unless some were
             skipped. For values (VALUES) always the latter.
    ordinal: the number of tensors of its role before it.
    count:   how many layers there are; for values, how many such tensors.
    width:   weights per row.
    block:   weights per block of the file type's base.
    stacked: the experts of a layer in one tensor.
    """

    name: str
    role: str
    index: int
    ordinal: int
    count: int
    width: int
    block: int
    stacked: bool
    facts: Facts


Condition = Callable[[RulePlace], bool]


def more_bits(p: RulePlace) -> bool:
    """The first and the last eighth, and every third between them."""
    eighth = p.count // 8
    return p.index < eighth or p.index >= 7 * p.count // 8 or (p.index - eighth) % 3 == 2


def first(divisor: int) -> Condition:
    """The first of so many equal parts of the layers."""
    return lambda p: p.index < p.count // divisor


def first_seen(divisor: int) -> Condition:
    """As `first`, but counting tensors: with experts, two of one role may stand in a layer."""
    return lambda p: p.ordinal < p.count // divisor


def before(number: int) -> Condition:
    """The layers before this one."""
    return lambda p: p.index < number


def middle(p: RulePlace) -> bool:
    """All but the first and the last eighth."""
    return p.count // 8 <= p.index < 7 * p.count // 8


def shared(p: RulePlace) -> bool:
    """Four or more query heads use one value head: it is small, and its errors count fourfold."""
    return p.facts.sharing >= 4


def shared_or_experts(p: RulePlace) -> bool:
    """Either a value head is shared (see `shared`), or there are at least four experts."""
    return shared(p) or p.facts.experts >= 4


def eight_experts(p: RulePlace) -> bool:
    """Mixtral: attention is a small part of the model."""
    return p.facts.experts == 8


def falcon(p: RulePlace) -> bool:
    """Falcon models."""
    return p.facts.architecture == "falcon"


def importance(p: RulePlace) -> bool:
    """There is an importance matrix."""
    return p.facts.importance


def ragged(p: RulePlace) -> bool:
    """Rows that are no whole number of blocks."""
    return p.width % p.block != 0


def experts(p: RulePlace) -> bool:
    """Stacked experts; BailingMoE 3 stacks attention projections as well."""
    return p.stacked and (p.facts.architecture != "bailingmoe3" or p.role.startswith("ffn_"))


def glm5_attention(p: RulePlace) -> bool:
    """The low-rank query projections of GLM-5, and the projection of its multi-token prediction."""
    named = any(part in p.name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj"))
    return named and p.facts.architecture == "glm5-next"


def without(condition: Condition) -> Condition:
    """Where the condition does not hold."""
    return lambda p: not condition(p)


# ---- the table ----

BASE = ""  # what the file type gives by default
ANY = " ".join(FILE_TYPES)
TINY = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"  # below 3 bits, mixed by rules of their own
TINY_1 = "IQ1_S IQ1_M"
TINY_2S = "IQ2_S IQ2_M"


@dataclass(frozen=True)
class TypeRule:
    """One row of the table: for these file types, this format, when all conditions hold."""

    file_types: frozenset[str]
    format: str
    when: tuple[Condition, ...]


def row(file_types: str, format: str, *when: Condition) -> TypeRule:
    """A row of the table, from its cells."""
    return TypeRule(frozenset(file_types.split()), format, when)


#       file type                format   when all of these hold

# Before those of the role.
EVERY_ROLE = (
    row(ANY, "Q8_0", glm5_attention),
    row("MXFP4_MOE", "MXFP4", experts),
    row("MXFP4_MOE", "Q8_0"),
)

# attn_v, and its fused forms.
VALUE_RULES = (
    row(TINY, "Q4_K", shared_or_experts),
    row(TINY_2S, "IQ3_S"),
    row(TINY, "Q2_K"),
    row(ANY, "Q8_0", eight_experts),
    row("Q2_K Q2_K_S", "Q4_K", shared),
    row("Q2_K", "Q3_K"),
    row("IQ3_XXS IQ3_XS IQ3_S", "Q4_K", shared),
    row("IQ3_XXS", "IQ3_S", without(importance)),
    row("IQ3_M", "Q4_K"),
    row("Q3_K_M", "Q5_K", before(2)),
    row("Q3_K_M", "Q4_K"),
    row("Q3_K_L", "Q5_K"),
    row("IQ4_NL IQ4_XS", "Q5_K", shared),
    row("Q4_K_S", "Q5_K", before(4)),
    row("Q4_K_M Q5_K_M", "Q6_K", more_bits),
)
# In 70B models eight heads share the values: an eighth of the size of attn_q, so more bits cost next to nothing.
VALUES_OF_70B = {"Q3_K": "Q5_K", "Q4_K": "Q5_K"}

RULES: Mapping[str, tuple[TypeRule, ...]] = {
    **dict.fromkeys(VALUES, VALUE_RULES),
    # Also the token embeddings of a model without an output matrix: they are both.
    "output": (
        row(ANY, "Q8_0", falcon),
        row(ANY, "Q8_0", ragged),
        row(TINY, "Q5_K"),
        row("IQ3_XXS", "Q5_K"),
        row("Q8_0", BASE),
        row(ANY, "Q6_K"),
    ),
    "token_embd": (
        row(TINY_2S, "IQ3_S"),
        row(TINY, "Q2_K"),
        row("IQ3_XXS", "IQ3_S"),
        row("TQ1_0 TQ2_0 Q2_0", "Q4_K"),
    ),
    "attn_k": (
        row(TINY, "Q4_K", eight_experts),
        row(TINY, BASE),
        row(ANY, "Q8_0", eight_experts),
        row("IQ3_XS", "IQ3_XXS"),
        row("IQ3_XXS", "IQ2_S"),
    ),
    "attn_q": (
        row("IQ3_XS", "IQ3_XXS"),
        row("IQ3_XXS", "IQ2_S"),
    ),
    "attn_output": (
        row(TINY, "Q5_K", eight_experts),
        row(TINY_1, "IQ2_XXS"),
        row(TINY_2S, "IQ3_S"),
        row("Q3_K_L", "Q4_K", falcon),
        row(ANY, BASE, falcon),
        row("Q2_K IQ3_XXS IQ3_XS IQ3_S IQ3_M Q3_K_S Q3_K_M Q4_K_S Q4_K_M IQ4_NL IQ4_XS", "Q5_K", eight_experts),
        row(ANY, BASE, eight_experts),
        row("Q2_K", "Q3_K"),
        row("IQ3_XXS", "IQ3_S"),
        row("IQ3_M Q3_K_M", "Q4_K"),
        row("Q3_K_L", "Q5_K"),
    ),
    "ffn_down": (
        row(TINY_2S, "IQ3_S", first_seen(8)),
        row(TINY, "Q2_K", first_seen(8)),
        row("Q2_K", "Q3_K"),
        row("Q2_K_S", "Q4_K", first(8)),
        row("IQ3_XXS", "Q4_K", without(importance), first(8)),
        row("IQ3_XXS", "Q3_K", without(importance)),
        row("IQ3_M", "Q4_K", first(8)),
        row("IQ3_M", "Q4_K", eight_experts, more_bits),
        row("Q3_K_M", "Q5_K", first(16)),
        row("Q3_K_M", "Q4_K", without(falcon)),
        row("Q3_K_M", "Q4_K", more_bits),
        row("Q3_K_L", "Q4_K", falcon),
        row("Q3_K_L", "Q5_K"),
        row("Q4_K_S", "Q5_K", without(falcon), first(8)),
        row("Q4_K_M", "Q6_K", falcon, first(16)),
        row("Q4_K_M", "Q5_K", falcon, more_bits),
        row("Q4_K_M", BASE, falcon),
        row("Q4_K_M Q5_K_M", "Q6_K", more_bits),
        row("IQ4_NL IQ4_XS", "Q5_K", without(importance), first(8)),
        # Importance makes the first layers of these go astray; their siblings with an offset do not.
        row("Q4_0", "Q4_1", importance, first(8)),
        row("Q5_0", "Q5_1", importance, first(8)),
    ),
    "ffn_gate": (row("IQ3_XS", "IQ3_XXS", middle),),
    "ffn_up": (row("IQ3_XS", "IQ3_XXS", middle),),
}


def choose(file_type: str, place: RulePlace) -> str:
    """The name of the format that the rules give; BASE where none applies."""
    for rule in (*EVERY_ROLE, *RULES.get(place.role, ())):
        if file_type in rule.file_types and all(condition(place) for condition in rule.when):
            found = rule.format
            break
    else:
        found = BASE
    if place.role in VALUES and place.facts.is_70b and file_type not in TINY.split():
        base = FILE_TYPES[file_type].base
        found = VALUES_OF_70B.get(found or (base.name if base else BASE), found)
    return found


# ---- widths that do not fit ----

# Where rows are no whole number of 256 weights: the format of 32-weight blocks with at least as many bits.
SMALLER_BLOCKS = {
    **dict.fromkeys("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_XS".split(), "IQ4_NL"),
    **dict.fromkeys("Q2_0 Q2_K Q3_K TQ1_0 TQ2_0".split(), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
LAST_RESORT = "F16"

# ---- formats that need an importance matrix ----

# llama.cpp refuses these without one (tensor_requires_imatrix): what comes out is garbage.
NEED_IMPORTANCE = frozenset("IQ3_XXS IQ2_XXS IQ2_XS IQ2_S IQ1_M IQ1_S".split())
# These have no search without one (ggml_quantize_requires_imatrix).
HAVE_NO_PLAIN_SEARCH = frozenset("IQ2_XXS IQ2_XS IQ1_S".split())


def needs_importance(name: str, format: str, file_type: str) -> bool:
    """Whether this format makes no sense for this tensor without an importance matrix."""
    if role_of(name) in ("token_embd", "output"):
        return format in HAVE_NO_PLAIN_SEARCH
    return format in NEED_IMPORTANCE or (format == "Q2_K" and file_type == "Q2_K_S")
