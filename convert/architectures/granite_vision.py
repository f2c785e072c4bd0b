"""The language model of Granite Vision 4: images reach several of its layers.

Source: llama.cpp, src/models/granite.cpp; transformers, modeling_granite4_vision.py.
"""

from dataclasses import replace
from typing import NamedTuple

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import i32s
from ggufsmith.convert.architecture import ConfigKey, Dims
from ggufsmith.convert.architectures.dense import GRANITE
from ggufsmith.convert.architectures.groups import VISION_TOWER
from ggufsmith.convert.config import Config

DEEPSTACK_MAPPING = "{arch}.deepstack_mapping"  # which the gguf package does not have yet
LAYERWISE, SPATIAL = "layerwise_projectors", "spatial_projectors"
SEES = next(iter(VISION_TOWER.values()))


class Reached(NamedTuple):
    """A layer of the text model that images reach, the block of the encoder that it gets, and the projector between."""

    layer: int
    block: int
    kind: str
    number: int


def reached(config: Config) -> list[Reached]:
    """What reaches the text model, in the order of its layers. Malformed for layers that there are not.

    config: config.json. Blocks are counted from 0; hidden state k of transformers is what comes out of block k - 1, and
    negative ones are counted from the end.
    """
    text, blocks = config.integer("num_hidden_layers") or 0, _blocks(config)
    pairs = config.items_of("deepstack_layer_map", list)
    layers = config.items_of("spatial_target_layers", int)
    state = config.integer("spatial_vision_layer", default=-1)
    if not all(len(pair) == 2 and all(isinstance(each, int) for each in pair) for pair in pairs):
        raise Malformed(f"deepstack_layer_map must be pairs of layers, not {pairs!r:.80}", where=config.path)
    wanted = [(layer, state, LAYERWISE, number) for number, (state, layer) in enumerate(pairs)]
    wanted += [(layer, state, SPATIAL, number) for number, layer in enumerate(layers)]
    found = sorted(
        Reached(layer + text if layer < 0 else layer, state + blocks if state < 0 else state - 1, kind, number)
        for layer, state, kind, number in wanted
    )
    if not all(0 <= each.layer < text and 0 <= each.block < blocks for each in found):
        raise Malformed(
            "deepstack_layer_map or spatial_target_layers names layers that there are not", where=config.path
        )
    return found


def _blocks(config: Config) -> int:
    """The number of the encoder's blocks."""
    return Config(config.mapping("vision_config"), config.path).integer("num_hidden_layers") or 0


def mapping(config: Config, dims: Dims) -> list[int] | None:
    """For every layer the number of the features that are added in front of it; -1 for none, and for the first.

    What the first layer gets takes the place of embeddings.
    """
    places = {each.layer: place for place, each in enumerate(reached(config)) if place}
    return [places.get(layer, -1) for layer in range(dims.blocks)] if places else None


GRANITE_VISION = replace(
    GRANITE,
    classes=("Granite4VisionForConditionalGeneration",),
    keys=(*GRANITE.keys, ConfigKey(DEEPSTACK_MAPPING, i32s, computed=mapping)),
    models="Granite Vision 4 (text)",
    drop={
        **GRANITE.drop,
        **VISION_TOWER,
        **dict.fromkeys((f"{LAYERWISE}.", f"{SPATIAL}.", "image_newline"), SEES),
    },
    pooling=False,
)

RECORDS = (GRANITE_VISION,)
