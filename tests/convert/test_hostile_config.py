"""Values of config.json that no model has: an error that names the key, soon, and never one from inside."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import newest
import tiny
import zoo
from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.container.layout import lay_out
from ggufsmith.container.values import i32s, string, u32s
from ggufsmith.convert.config import Config
from ggufsmith.convert.plan import make_plan

LINES = {
    name: tiny.changed({"architectures": [line.model_class], **line.config}, line.published)
    for name, line in {**zoo.ZOO, **{name: line.model for name, line in newest.NEWEST.items()}}.items()
}
SIZES = {
    "num_hidden_layers": 4,
    "vocab_size": 320,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
ASKED = {"partial_rotary_factor": 0.5, "num_nextn_predict_layers": 1, "first_k_dense_replace": 1}
WRONG: tuple[Any, ...] = (1 << 40, -1, [None], [1 << 40] * 4)


def changed(name: str, **changes: Any) -> Config:
    """The config of a fixture, with changes to the part of the language model."""
    config = {**SIZES, **LINES[name]}
    inside = config.get("text_config")
    config |= {"text_config": {**inside, **changes}} if isinstance(inside, dict) else changes
    return Config(config, Path("config.json"))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("hy-v3", {"num_nextn_predict_layers": 50_000_000}, "num_nextn_predict_layers must be at most 4096"),
        ("glm-ocr", {"num_nextn_predict_layers": 50_000_000}, "num_nextn_predict_layers must be at most 4096"),
        ("glm-ocr", {"num_nextn_predict_layers": [50_000_000]}, "num_nextn_predict_layers must be at most 4096"),
        ("gpt2", {"n_layer": 50_000_000}, "n_layer must be at most 4096"),
        (
            "gemma4-31b",
            {"global_head_dim": 1 << 40, "rope_parameters": {"full_attention": {"rope_type": "proportional"}}},
            "over the limit of 65536",
        ),
        ("sarvam", {"partial_rotary_factor": -1}, "partial_rotary_factor must be 0 to 1, not -1"),
        ("gpt-neox", {"rotary_pct": 1.5}, "rotary_pct must be 0 to 1, not 1.5"),
        ("nemotron_h", {"intermediate_size": 1 << 40}, "intermediate_size is 1099511627776, which does not fit"),
        ("jamba", {"num_key_value_heads": 1 << 40}, "num_key_value_heads is 1099511627776, which does not fit"),
        ("granite-swa", {"layer_rope_theta": [None] * 4}, r"layer_rope_theta\[0\] must be a number, not None"),
    ],
)
def test_the_key_is_named(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        make_plan(changed(name, **changes), None)


def cases() -> Iterator[tuple[str, str, Any]]:
    for name, config in LINES.items():
        inside = config.get("text_config")
        for key in {**ASKED, **SIZES, **(inside if isinstance(inside, dict) else config)}:
            yield from ((name, key, value) for value in WRONG)


def test_no_value_of_any_key_is_an_error_from_inside() -> None:
    for name, key, value in cases():
        try:
            with suppress(Failure):
                lay_out({"x": string(""), **make_plan(changed(name, **{key: value}), None).metadata}, [])
        except Exception as error:
            raise AssertionError(f"{name}: {key} = {value} gives {error!r}") from error


@pytest.mark.parametrize(("make", "wrong"), [(i32s, 1 << 31), (i32s, -1 << 40), (u32s, -1), (u32s, 1 << 32)])
def test_a_number_that_does_not_fit_is_not_wrapped_around(make: Any, wrong: int) -> None:
    with pytest.raises(OverflowError, match=str(wrong)):
        make([0, wrong])
