"""The encoder of sound of Granite Speech: a conformer, and a Q-Former that makes a few embeddings of every window.

Source: llama.cpp, tools/mtmd/models/granite-speech.cpp; transformers, modeling_granite_speech.py and
modeling_granite_speech_plus.py.
"""

from collections.abc import Callable, Iterable
from typing import Any

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import f32, i32s, string, u32
from ggufsmith.convert.ops import Part
from ggufsmith.convert.projectors.groups import AUDIO_KEYS, HARMLESS, A, Size, number, positive, text_size
from ggufsmith.convert.projectors.ops import NormScale, NormShift, Pointwise
from ggufsmith.convert.projectors.record import (
    SINGLE,
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
    sized,
    weight,
)
from ggufsmith.convert.reorder import Squeeze

FEATURE_LAYERS = "clip.audio.feature_layer"  # which the gguf package does not have yet
FORMER_BLOCKS = 2  # of the Q-Former that llama.cpp loads
BLOCK, FORMER = "encoder.layers.{}", "projector.qformer.encoder.layer.{}"


def former(name: str, usual: Any = None) -> Callable[[ProjectorFacts], Any]:
    """A value of the Q-Former's part of config.json."""
    return lambda facts: facts.text.mapping("projector_config").get(name, usual)


def former_size(name: str, usual: int) -> Size:
    """A size of the Q-Former."""

    def size(facts: ProjectorFacts) -> int:
        value = former(name, usual)(facts)
        return positive(value if isinstance(value, int) and not isinstance(value, bool) else None, name, facts)

    return size


def outer_size(name: str, usual: int) -> Size:
    """A size that stands outside the parts of config.json."""
    return lambda facts: positive(facts.text.integer(name, default=usual), name, facts)


def joined(facts: ProjectorFacts) -> list[int]:
    """The blocks whose outputs stand before that of the last; 0 is what goes into the first."""
    found = facts.config.items_of("cat_hidden_layers", int)
    if not all(0 <= layer < facts.size("blocks") for layer in found) or found != sorted(set(found)):
        raise Malformed(f"cat_hidden_layers must be blocks in their order, not {found!r:.60}", where=facts.config.path)
    return found


def check(facts: ProjectorFacts) -> str | None:
    """A sentence if the encoder is not what llama.cpp's graph assumes."""
    if facts.size("heads") * facts.size("head_dim") != facts.size("embd"):
        return "llama.cpp assumes heads that together are as wide as the encoder"
    if former("hidden_size", 768)(facts) != facts.size("embd"):
        return "llama.cpp assumes a projector as wide as the encoder"
    if facts.size("window") % facts.size("rate"):
        return "window_size is not a multiple of downsample_rate"
    return former_problem(facts, "projector_config", FORMER_BLOCKS)


def former_problem(facts: ProjectorFacts, part: str, blocks: int) -> str | None:
    """A sentence if a Q-Former is not what llama.cpp's graph assumes. part: of config.json, which describes it."""
    wanted = {
        "num_hidden_layers": blocks,
        "cross_attention_frequency": 1,
        "hidden_act": "gelu",
        "use_qformer_text_input": False,
        "layer_norm_eps": 1e-12,
    }
    usual = {"num_hidden_layers": 12, "cross_attention_frequency": 2, "hidden_act": "gelu"}
    for name, value in wanted.items():
        found = facts.text.mapping(part).get(name, usual.get(name, value))
        if found != value:
            return f"{part}: {name} is {found!r:.40}, but llama.cpp assumes {value!r}"
    return None


def former_blocks(facts: ProjectorFacts) -> Iterable[tuple[int, int]]:
    """The number of every block of the Q-Former."""
    return ((block, block) for block in range(FORMER_BLOCKS))


def keys_or_values(index: int) -> Callable[[ProjectorFacts], Part]:
    """The op that takes keys (0) or values (1) out of the matrix of both."""
    return lambda facts: Part(index * facts.size("embd"), (index + 1) * facts.size("embd"))


NORM = f"{BLOCK}.conv.batch_norm"
CONFORMER = (
    *(
        rule
        for name, source, shape in (
            ("ffn_norm", "ff1.pre_norm", "embd"),
            ("ffn_up", "ff1.up_proj", "ff embd"),
            ("ffn_down", "ff1.down_proj", "embd ff"),
            ("ffn_norm_1", "ff2.pre_norm", "embd"),
            ("ffn_up_1", "ff2.up_proj", "ff embd"),
            ("ffn_down_1", "ff2.down_proj", "embd ff"),
            ("ln1", "attn.pre_norm", "embd"),
            ("attn_out", "attn.to_out", "embd embd"),
            ("norm_conv", "conv.norm", "embd"),
            ("ln2", "post_norm", "embd"),
        )
        for rule in biased(f"a.blk.{{}}.{name}", f"{BLOCK}.{source}", shape)
    ),
    *weight("a.blk.{}.attn_q", f"{BLOCK}.attn.to_q", "embd embd"),
    *weight("a.blk.{}.attn_k", f"{BLOCK}.attn.to_kv", "2*embd embd", op=keys_or_values(0)),
    *weight("a.blk.{}.attn_v", f"{BLOCK}.attn.to_kv", "2*embd embd", op=keys_or_values(1)),
    ProjectorRule("a.blk.{}.attn_rel_pos_emb", f"{BLOCK}.attn.rel_pos_emb.weight", "distances head_dim"),
    *(
        rule
        for name, source, shape in (
            ("conv_pw1", "conv.up_conv", "2*inner embd 1"),
            ("conv_pw2", "conv.down_conv", "embd inner 1"),
        )
        for rule in (
            *weight(f"a.blk.{{}}.{name}", f"{BLOCK}.{source}", shape, op=lambda facts: Pointwise(), types=SINGLE),
            ProjectorRule(f"a.blk.{{}}.{name}.bias", f"{BLOCK}.{source}.bias", shape.split()[0]),
        )
    ),
    *weight(
        "a.blk.{}.conv_dw",
        f"{BLOCK}.conv.depth_conv.conv",
        "inner 1 kernel",
        op=lambda facts: Squeeze(),
        types=SINGLE,
    ),
    ProjectorRule(
        "a.blk.{}.conv_norm.weight",
        f"{NORM}.weight",
        "inner",
        op=lambda facts: NormScale(),
        more=(f"{NORM}.running_var",),
    ),
    ProjectorRule(
        "a.blk.{}.conv_norm.bias",
        f"{NORM}.bias",
        "inner",
        op=lambda facts: NormShift(),
        more=(f"{NORM}.running_mean", f"{NORM}.weight", f"{NORM}.running_var"),
    ),
)
# Of one block of a Q-Former: in the file, in the checkpoint, and the shape, where "joined" is what it attends to.
Q_FORMER = (
    ("self_attn_q", "attention.attention.query", "embd embd"),
    ("self_attn_k", "attention.attention.key", "embd embd"),
    ("self_attn_v", "attention.attention.value", "embd embd"),
    ("self_attn_out", "attention.output.dense", "embd embd"),
    ("self_attn_norm", "attention.output.LayerNorm", "embd"),
    ("cross_attn_q", "crossattention.attention.query", "embd embd"),
    ("cross_attn_k", "crossattention.attention.key", "embd joined"),
    ("cross_attn_v", "crossattention.attention.value", "embd joined"),
    ("cross_attn_out", "crossattention.output.dense", "embd embd"),
    ("cross_attn_norm", "crossattention.output.LayerNorm", "embd"),
    ("ffn_up", "intermediate_query.dense", "former_ff embd"),
    ("ffn_down", "output_query.dense", "embd former_ff"),
    ("ffn_norm", "output_query.LayerNorm", "embd"),
)
ENCODER = EncoderRecord(
    "audio",
    "encoder_config",
    ("encoder.", "projector."),
    sizes={
        "text": text_size,
        "embd": number("hidden_dim"),
        "ff": lambda facts: facts.size("embd") * number("feedforward_mult", default=4)(facts),
        "blocks": number("num_layers"),
        "heads": number("num_heads"),
        "head_dim": lambda facts: positive(
            facts.config.integer("dim_head", default=facts.size("embd") // facts.size("heads")), "dim_head", facts
        ),
        "mel": number("input_dim"),
        "labels": number("output_dim"),
        "context": number("context_size"),
        "kernel": number("conv_kernel_size"),
        "reach": number("max_pos_emb"),
        "distances": lambda facts: 2 * facts.size("reach") + 1,
        "inner": lambda facts: facts.size("embd") * number("conv_expansion_factor", default=2)(facts),
        "window": outer_size("window_size", 15),
        "rate": outer_size("downsample_rate", 5),
        "queries": lambda facts: facts.size("window") // facts.size("rate"),
        "former_heads": former_size("num_attention_heads", 12),
        "former_ff": former_size("intermediate_size", 3072),
        "joined": lambda facts: facts.size("embd") * (1 + len(joined(facts))),
    },
    tensors=(
        *biased("a.input_projection", "encoder.input_linear", "embd mel"),
        *CONFORMER,
        *biased("a.enc_ctc_out", "encoder.out", "labels embd"),
        *biased("a.enc_ctc_out_mid", "encoder.out_mid", "embd labels"),
        ProjectorRule("a.proj_query", "projector.query", "1 queries embd"),
        *biased("a.proj_norm", "projector.qformer.layernorm", "embd"),
        *(
            rule
            for name, source, shape in Q_FORMER
            for rule in biased(f"a.proj_blk.{{}}.{name}", f"{FORMER}.{source}", shape, copies=former_blocks)
        ),
        *biased("a.proj_linear", "projector.linear", "text embd"),
    ),
    keys=(
        *AUDIO_KEYS,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.GRANITE_SPEECH)),
        ProjectorKey(A.Attention.LAYERNORM_EPS, f32, fixed(1e-5)),
        ProjectorKey(A.CHUNK_SIZE, u32, sized("context")),
        ProjectorKey(A.CONV_KERNEL_SIZE, u32, sized("kernel")),
        ProjectorKey(A.MAX_POS_EMB, u32, sized("reach")),
        ProjectorKey(A.Projector.WINDOW_SIZE, u32, sized("window")),
        ProjectorKey(A.Projector.DOWNSAMPLE_RATE, u32, sized("rate")),
        ProjectorKey(A.Projector.HEAD_COUNT, u32, sized("former_heads")),
        ProjectorKey(FEATURE_LAYERS, i32s, lambda facts: joined(facts) or None),
    ),
    harmless=HARMLESS,
    check=check,
)
GRANITE_SPEECH = Projector(
    ("GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration"),
    "Granite Speech",
    VisionProjectorType.GRANITE_SPEECH,
    (ENCODER,),
    drop={
        ".num_batches_tracked": "how often a batch norm was trained",
        "encoder.attention_dists": "the distances of positions, which llama.cpp computes itself",
    },
)

RECORDS = (GRANITE_SPEECH,)
