"""Encoders of sound that are Whisper's: those of Voxtral, Qwen2-Audio and Audio Flamingo 3.

Source: llama.cpp, tools/mtmd/models/whisper-enc.cpp; transformers, modeling_voxtral.py, modeling_qwen2_audio.py and
modeling_audioflamingo3.py.
"""

from dataclasses import replace

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.container.values import f32, string, u32
from ggufsmith.convert.projectors.groups import AUDIO_KEYS, HARMLESS, A, config_value, number, text_size
from ggufsmith.convert.projectors.ops import AsColumn
from ggufsmith.convert.projectors.record import (
    SINGLE,
    EncoderRecord,
    Projector,
    ProjectorFacts,
    ProjectorKey,
    ProjectorRule,
    biased,
    fixed,
    weight,
)

FRAMES = 1500  # of the 30 seconds that llama.cpp gives the encoder, behind the second convolution
STACKED = 4  # of Voxtral, whose graph in transformers reshapes to the width of the feed-forward
ALWAYS_HALF = (("F32", "F16"), ("BF16", "F16"), ("Q8_0", "F16"))
BLOCK = "audio_tower.layers.{}"


def whisper_check(facts: ProjectorFacts) -> str | None:
    """A sentence if the encoder is not what llama.cpp's graph assumes."""
    if facts.size("positions") < FRAMES:
        return f"llama.cpp gives the encoder {FRAMES} frames, but it has {facts.size('positions')} positions"
    return None


def voxtral_check(facts: ProjectorFacts) -> str | None:
    """The same, and the number of frames that become one embedding."""
    if facts.size("ff") != STACKED * facts.size("embd"):
        return f"llama.cpp stacks {STACKED} frames, but intermediate_size is not {STACKED} times hidden_size"
    return whisper_check(facts)


def convolution(number: int, inputs: str) -> tuple[ProjectorRule, ProjectorRule]:
    """A convolution over time, which ggml has in half precision only, and its bias as a column."""
    name, source = f"a.conv1d.{number}", f"audio_tower.conv{number}"
    return (
        *weight(name, source, f"embd {inputs} 3", types=ALWAYS_HALF),
        ProjectorRule(f"{name}.bias", f"{source}.bias", "embd", op=lambda facts: AsColumn()),
    )


WHISPER = EncoderRecord(
    "audio",
    "audio_config",
    ("audio_tower.", "multi_modal_projector."),
    sizes={
        "text": text_size,
        "embd": number("hidden_size", "d_model"),
        "ff": number("intermediate_size", "encoder_ffn_dim"),
        "blocks": number("num_hidden_layers", "encoder_layers"),
        "heads": number("num_attention_heads", "encoder_attention_heads"),
        "mel": number("num_mel_bins"),
        "positions": number("max_source_positions", default=FRAMES),
    },
    tensors=(
        *convolution(1, "mel"),
        *convolution(2, "embd"),
        *weight("a.position_embd", "audio_tower.embed_positions", "positions embd", types=SINGLE),
        *biased("a.blk.{}.attn_q", f"{BLOCK}.self_attn.q_proj", "embd embd"),
        *weight("a.blk.{}.attn_k", f"{BLOCK}.self_attn.k_proj", "embd embd"),
        *biased("a.blk.{}.attn_v", f"{BLOCK}.self_attn.v_proj", "embd embd"),
        *biased("a.blk.{}.attn_out", f"{BLOCK}.self_attn.out_proj", "embd embd"),
        *biased("a.blk.{}.ln1", f"{BLOCK}.self_attn_layer_norm", "embd"),
        *biased("a.blk.{}.ln2", f"{BLOCK}.final_layer_norm", "embd"),
        *biased("a.blk.{}.ffn_up", f"{BLOCK}.fc1", "ff embd"),
        *biased("a.blk.{}.ffn_down", f"{BLOCK}.fc2", "embd ff"),
        *biased("a.post_ln", "audio_tower.layer_norm", "embd"),
    ),
    keys=(*AUDIO_KEYS, ProjectorKey(A.Attention.LAYERNORM_EPS, f32, config_value("layer_norm_eps", 1e-5))),
    require={"activation_function": ("gelu",), "scale_embedding": (False,)},
    harmless=frozenset(
        (
            *(*HARMLESS, "vocab_size", "layerdrop", "encoder_layerdrop", "activation_dropout", "head_dim"),
            *("num_key_value_heads", "is_encoder_decoder"),
        )
    ),
    check=whisper_check,
)
VOXTRAL = replace(
    WHISPER,
    tensors=(
        *WHISPER.tensors,
        *weight("mm.a.mlp.1", "multi_modal_projector.linear_1", "text ff"),
        *weight("mm.a.mlp.2", "multi_modal_projector.linear_2", "text text"),
    ),
    keys=(
        *WHISPER.keys,
        ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.VOXTRAL)),
        ProjectorKey(A.Projector.STACK_FACTOR, u32, fixed(STACKED)),
    ),
    check=voxtral_check,
)
QWEN2A = replace(
    WHISPER,
    tensors=(*WHISPER.tensors, *biased("mm.a.fc", "multi_modal_projector.linear", "text embd")),
    keys=(*WHISPER.keys, ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.QWEN2A))),
)


def flamingo_check(facts: ProjectorFacts) -> str | None:
    """As `whisper_check`; and what is between the two matrices."""
    function = facts.text.first("projector_hidden_act")
    if function not in (None, "gelu"):
        return f"projector_hidden_act is {function!r:.40}, but llama.cpp assumes 'gelu'"
    return whisper_check(facts)


# Its convolutions stay as they were trained; ggml rounds them to half precision when it computes.
AUDIO_FLAMINGO = replace(
    WHISPER,
    tensors=(
        *(replace(rule, types=SINGLE) if rule.types == ALWAYS_HALF else rule for rule in WHISPER.tensors),
        *biased("mm.a.mlp.1", "multi_modal_projector.linear_1", "text embd"),
        *biased("mm.a.mlp.2", "multi_modal_projector.linear_2", "text text"),
    ),
    keys=(*WHISPER.keys, ProjectorKey(Keys.Clip.PROJECTOR_TYPE, string, fixed(VisionProjectorType.MUSIC_FLAMINGO))),
    check=flamingo_check,
)

RECORDS = (
    Projector(("VoxtralForConditionalGeneration",), "Voxtral", VisionProjectorType.VOXTRAL, (VOXTRAL,)),
    Projector(("Qwen2AudioForConditionalGeneration",), "Qwen2-Audio", VisionProjectorType.QWEN2A, (QWEN2A,)),
    Projector(
        ("AudioFlamingo3ForConditionalGeneration",),
        "Audio Flamingo 3",
        VisionProjectorType.MUSIC_FLAMINGO,
        (AUDIO_FLAMINGO,),
    ),
)
