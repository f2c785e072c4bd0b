"""The encoder of sound of Qwen3-ASR and Qwen3-Omni: convolutions over pictures of sound, and blocks like Whisper's.

Source: llama.cpp, tools/mtmd/models/qwen3a.cpp; transformers, modeling_qwen3_asr.py and modeling_qwen3_omni_moe.py.
"""

from dataclasses import replace

from gguf.constants import VisionProjectorType

from ggufsmith.container.values import f32, string
from ggufsmith.convert.projectors.groups import AUDIO_KEYS, HARMLESS, A, config_value, number, positive, text_size
from ggufsmith.convert.projectors.ops import AsColumn, Sinusoids
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
from ggufsmith.convert.projectors.whisper import ALWAYS_HALF

POSITIONS = 1500  # in the file, of which llama.cpp takes 13
BLOCK = "audio_tower.layers.{}"


def convolution(index: int, inputs: str) -> tuple[ProjectorRule, ProjectorRule]:
    """A convolution that halves both sides, which ggml has in half precision only, and its bias."""
    name, source = f"a.conv2d.{index}", f"audio_tower.conv2d{index}"
    return (
        *weight(name, source, f"conv {inputs} 3 3", types=ALWAYS_HALF),
        ProjectorRule(f"{name}.bias", f"{source}.bias", "conv", op=lambda facts: AsColumn(2)),
    )


def flat(facts: ProjectorFacts) -> int:
    """The numbers of one frame behind three convolutions."""
    bins = facts.size("mel")
    for _ in range(3):
        bins = (bins + 1) // 2
    return bins * facts.size("conv")


def out_check(facts: ProjectorFacts) -> str | None:
    """A sentence if it does not make embeddings of the text model."""
    out, text = facts.size("out"), facts.size("text")
    return None if out == text else f"output_dim is {out}, but the embeddings of the text model have {text} numbers"


QWEN3A = EncoderRecord(
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
        "conv": number("downsample_hidden_size"),
        "out": number("output_dim"),
        "flat": lambda facts: positive(flat(facts), "downsample_hidden_size", facts),
    },
    tensors=(
        ProjectorRule(
            "a.position_embd.weight",
            "",
            "",
            op=lambda facts: Sinusoids(POSITIONS, facts.size("embd")),
            types=SINGLE,
        ),
        *convolution(1, "1"),
        *convolution(2, "conv"),
        *convolution(3, "conv"),
        *weight("a.conv_out", "audio_tower.conv_out", "embd flat", types=ALWAYS_HALF),
        *(
            rule
            for name, source, shape in (
                ("attn_q", "self_attn.q_proj", "embd embd"),
                ("attn_k", "self_attn.k_proj", "embd embd"),
                ("attn_v", "self_attn.v_proj", "embd embd"),
                ("attn_out", "self_attn.out_proj", "embd embd"),
                ("ln1", "self_attn_layer_norm", "embd"),
                ("ln2", "final_layer_norm", "embd"),
                ("ffn_up", "fc1", "ff embd"),
                ("ffn_down", "fc2", "embd ff"),
            )
            for rule in biased(f"a.blk.{{}}.{name}", f"{BLOCK}.{source}", shape)
        ),
        *biased("a.post_ln", "audio_tower.ln_post", "embd"),
        *biased("mm.a.mlp.1", "audio_tower.proj1", "embd embd"),
        *biased("mm.a.mlp.2", "audio_tower.proj2", "out embd"),
    ),
    keys=(
        *AUDIO_KEYS,
        ProjectorKey(A.PROJECTOR_TYPE, string, fixed(VisionProjectorType.QWEN3A)),
        ProjectorKey(A.Attention.LAYERNORM_EPS, f32, config_value("layer_norm_eps", 1e-5)),
    ),
    require={
        "activation_function": ("gelu",),
        "scale_embedding": (False,),
        "n_window": (50,),
        "n_window_infer": (800,),
    },
    harmless=frozenset(
        (
            *(*HARMLESS, "activation_dropout", "max_source_positions", "conv_chunksize", "encoder_layerdrop"),
            *("num_hidden_layers",),
        )
    ),
    check=out_check,
    note="llama.cpp fills up the last second of a sound, and lets the encoder attend to that, unlike transformers",
)

RECORDS = (
    Projector(
        ("Qwen3ASRForConditionalGeneration",),
        "Qwen3-ASR",
        VisionProjectorType.QWEN3A,
        (QWEN3A,),
        renamed={
            "thinker.": "",
            "multi_modal_projector.linear_1.": "audio_tower.proj1.",
            "multi_modal_projector.linear_2.": "audio_tower.proj2.",
        },
    ),
    Projector(
        ("Qwen3OmniMoeForConditionalGeneration",),
        "Qwen3-Omni (what it hears)",
        VisionProjectorType.QWEN3A,
        (replace(QWEN3A, prefixes=("audio_tower.", "visual.")),),
        renamed={"thinker.model.": "", "thinker.": ""},
        drop={"visual.": "the encoder of images, which llama.cpp does not load beside one of sound"},
    ),
)
