"""Which layers of the text model images reach, and with what, as config.json says it."""

from pathlib import Path
from typing import Any

import pytest

from ggufsmith.container.errors import Malformed
from ggufsmith.convert.architectures.granite_vision import LAYERWISE, SPATIAL, Reached, reached
from ggufsmith.convert.config import Config

WHOLE: dict[str, Any] = {
    "text_config": {"num_hidden_layers": 8},
    "vision_config": {"num_hidden_layers": 6},
    "deepstack_layer_map": [[-6, 3], [-2, 0]],
    "spatial_target_layers": [4, -1],
}


def config(**changes: Any) -> Config:
    return Config({**WHOLE, **changes}, Path("config.json"))


def test_in_the_order_of_the_layers() -> None:
    assert reached(config()) == [
        Reached(0, 4, LAYERWISE, 1),
        Reached(3, 0, LAYERWISE, 0),
        Reached(4, 5, SPATIAL, 0),
        Reached(7, 5, SPATIAL, 1),
    ]


def test_hidden_states_may_be_counted_from_the_front() -> None:
    """The first is what goes into the first block, so that state 1 of 7 is state -6."""
    assert reached(config(deepstack_layer_map=[[1, 3], [5, 0]], spatial_vision_layer=6)) == reached(config())


@pytest.mark.parametrize(
    "changes",
    [
        {"deepstack_layer_map": [[-7, 0]]},
        {"deepstack_layer_map": [[0, 0]]},
        {"deepstack_layer_map": [[-1, 8]]},
        {"deepstack_layer_map": [[-1]]},
        {"deepstack_layer_map": [["-1", 0]]},
        {"spatial_target_layers": [-9]},
        {"spatial_target_layers": "all"},
        {"vision_config": {}},
    ],
)
def test_layers_that_there_are_not(changes: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match=r"deepstack_layer_map|spatial_target_layers"):
        reached(config(**changes))
