"""What the records of projectors have in common: sizes out of configs, keys, blocks of encoders."""

from collections.abc import Callable, Mapping
from typing import Any

from gguf.constants import Keys

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import boolean, f32, f32s, u32
from ggufsmith.convert.config import as_number
from ggufsmith.convert.projectors.record import ProjectorFacts, ProjectorKey, ProjectorRule, biased, fixed, sized

Size = Callable[[ProjectorFacts], int]
V, A = Keys.ClipVision, Keys.ClipAudio

# Keys of every encoder's section that its output does not depend on.
HARMLESS = frozenset(
    """
    model_type initializer_range attention_dropout dropout dtype torch_dtype transformers_version _name_or_path
    architectures max_position_embeddings num_channels in_channels in_chans vision_use_head tokens_per_second
    rope_parameters rope_theta attention_bias chunk_size_feed_forward id2label label2id is_encoder_decoder
    output_attentions output_hidden_states return_dict
    """.split()
)


def number(*names: str, default: int | None = None) -> Size:
    """A size in the encoder's section. Malformed if it is missing, or not positive."""

    def size(facts: ProjectorFacts) -> int:
        return positive(facts.config.integer(*names, default=default), names[0], facts)

    return size


def positive(value: int | None, name: str, facts: ProjectorFacts) -> int:
    """Malformed if this is not a size."""
    if value is None or not 0 < value < 1 << 31:
        raise Malformed(f"{name} must be a positive number, not {value}", where=facts.config.path)
    return value


def text_size(facts: ProjectorFacts) -> int:
    """The length of the text model's embeddings."""
    return positive(facts.text.integer("hidden_size", "n_embd", "dim"), "hidden_size", facts)


def config_value(name: str, default: float) -> Callable[[ProjectorFacts], float | None]:
    """A number of the section."""
    return lambda facts: facts.config.number(name, default=default)


def pixels(name: str) -> Callable[[ProjectorFacts], list[float]]:
    """Three numbers that say how the colours of a pixel are scaled. Malformed if no config has them.

    They stand in the processor's config; in Mistral's own layout, which has none, they are made part of the encoder's.
    """

    def three(facts: ProjectorFacts) -> list[float]:
        found = facts.processor.first(name) or facts.config.first(name)
        if not isinstance(found, list) or len(found) != 3:
            said = "is missing" if found is None else f"must be three numbers, not {found!r:.60}"
            raise Malformed(f"{name} {said}", where=facts.processor.path)
        return [as_number(each, f"each of {name}", facts.processor.path) for each in found]

    return three


def limit(name: str, edge: str, usual: int) -> Size:
    """How many pixels an image has at least, or at most; transformers 5 saves them as the lengths of edges."""

    def pixels(facts: ProjectorFacts) -> int:
        size = facts.processor.first("size")
        default = size.get(edge) if isinstance(size, Mapping) else None
        return positive(facts.processor.integer(name, default=default or usual), name, facts)

    return pixels


def rope_base(facts: ProjectorFacts) -> object:
    """The base of the rotary embedding that the section names, None if it names none."""
    return facts.config.mapping("rope_parameters").get("rope_theta", facts.config.first("rope_theta"))


def unless(usual: int, size: str) -> Callable[[ProjectorFacts], int | None]:
    """A size that llama.cpp assumes to be this one, if it is another."""
    return lambda facts: None if facts.size(size) == usual else facts.size(size)


# The sizes of an encoder whose config has the usual names.
VISION_SIZES: Mapping[str, Size] = {
    "text": text_size,
    "image": number("image_size"),
    "patch": number("patch_size"),
    "embd": number("hidden_size"),
    "ff": number("intermediate_size"),
    "blocks": number("num_hidden_layers"),
    "heads": number("num_attention_heads"),
}


# -- keys -------------------------------------------------------------------------------------------------------------

VISION_KEYS = (
    ProjectorKey(Keys.Clip.HAS_VISION_ENCODER, boolean, fixed(True)),
    ProjectorKey(V.PROJECTION_DIM, u32, sized("text")),
    ProjectorKey(V.IMAGE_SIZE, u32, sized("image")),
    ProjectorKey(V.PATCH_SIZE, u32, sized("patch")),
    ProjectorKey(V.EMBEDDING_LENGTH, u32, sized("embd")),
    ProjectorKey(V.FEED_FORWARD_LENGTH, u32, sized("ff")),
    ProjectorKey(V.BLOCK_COUNT, u32, sized("blocks")),
    ProjectorKey(V.Attention.HEAD_COUNT, u32, sized("heads")),
    ProjectorKey(V.IMAGE_MEAN, f32s, pixels("image_mean")),
    ProjectorKey(V.IMAGE_STD, f32s, pixels("image_std")),
)
AUDIO_KEYS = (
    ProjectorKey(Keys.Clip.HAS_AUDIO_ENCODER, boolean, fixed(True)),
    ProjectorKey(A.PROJECTION_DIM, u32, sized("text")),
    ProjectorKey(A.EMBEDDING_LENGTH, u32, sized("embd")),
    ProjectorKey(A.FEED_FORWARD_LENGTH, u32, sized("ff")),
    ProjectorKey(A.BLOCK_COUNT, u32, sized("blocks")),
    ProjectorKey(A.Attention.HEAD_COUNT, u32, sized("heads")),
    ProjectorKey(A.NUM_MEL_BINS, u32, sized("mel")),
)
USE_GELU = ProjectorKey(V.USE_GELU, boolean, fixed(True))
USE_SILU = ProjectorKey(V.USE_SILU, boolean, fixed(True))


def epsilon(value: Callable[[ProjectorFacts], Any]) -> ProjectorKey:
    """The key of what the norms add to the variance."""
    return ProjectorKey(V.Attention.LAYERNORM_EPS, f32, value)


# -- tensors ----------------------------------------------------------------------------------------------------------


def layers(source: str, *rules: tuple[str, str, str], **more: Any) -> tuple[ProjectorRule, ...]:
    """Matrices or norms of every block, with biases: (name, source, shape) after "v.blk.{}." and the source's part."""
    return tuple(
        rule for name, end, shape in rules for rule in biased(f"v.blk.{{}}.{name}", f"{source}.{end}", shape, **more)
    )
