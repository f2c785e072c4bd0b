"""The encoders of Qwen2.5-Omni: Qwen2.5-VL's of images, and one of sound like that of Qwen2-Audio.

Source: llama.cpp, tools/mtmd/clip.cpp (QWEN25O); transformers, modeling_qwen2_5_omni.py.
"""

from dataclasses import replace

from gguf.constants import Keys, VisionProjectorType

from ggufsmith.convert.projectors.groups import layers, number
from ggufsmith.convert.projectors.ops import Sinusoids
from ggufsmith.convert.projectors.qwen import QWEN25VL
from ggufsmith.convert.projectors.qwen_audio import out_check
from ggufsmith.convert.projectors.record import SINGLE, Projector, ProjectorRule, fixed
from ggufsmith.convert.projectors.whisper import FRAMES, QWEN2A, whisper_check

POSITIONS = "a.position_embd.weight"
SPLIT = tuple(f"v.blk.{{}}.attn_{name}." for name in "qkv")
OWN = (("audio_tower.layer_norm.", "audio_tower.ln_post."), ("multi_modal_projector.linear.", "audio_tower.proj."))


def own(rule: ProjectorRule) -> ProjectorRule:
    """A rule of Qwen2-Audio with the names that these have here."""
    source = rule.source
    for other, name in OWN:
        source = source.replace(other, name)
    return replace(rule, source=source)


VISION = replace(
    QWEN25VL,
    tensors=(
        *(rule for rule in QWEN25VL.tensors if not rule.name.startswith(SPLIT)),
        *layers("visual.blocks.{}", *((f"attn_{name}", f"attn.{name}", "embd embd") for name in "qkv")),
    ),
    keys=tuple(
        replace(key, value=fixed(VisionProjectorType.QWEN25O)) if key.name == Keys.Clip.PROJECTOR_TYPE else key
        for key in QWEN25VL.keys
    ),
)
AUDIO = replace(
    QWEN2A,
    prefixes=("audio_tower.",),
    sizes={**QWEN2A.sizes, "out": number("output_dim")},
    tensors=(
        *(own(rule) for rule in QWEN2A.tensors if rule.name != POSITIONS),
        ProjectorRule(POSITIONS, "", "", op=lambda facts: Sinusoids(FRAMES, facts.size("embd")), types=SINGLE),
    ),
    keys=tuple(key for key in QWEN2A.keys if key.name != Keys.Clip.PROJECTOR_TYPE),
    harmless=QWEN2A.harmless | {"n_window"},
    check=lambda facts: whisper_check(facts) or out_check(facts),
    note="llama.cpp encodes half a minute of sound at once, of which the model was trained to see two seconds each",
)
QWEN_OMNI = Projector(
    ("Qwen2_5OmniForConditionalGeneration", "Qwen2_5OmniModel"),
    "Qwen2.5-Omni (what it sees and hears)",
    VisionProjectorType.QWEN25O,
    (VISION, AUDIO),
    renamed={"thinker.model.": "", "thinker.": ""},
    drop={"audio_tower.audio_bos_eos_token.": "embeddings that transformers does not use"},
)

RECORDS = (QWEN_OMNI,)
