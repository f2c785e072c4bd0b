"""Embedding models: the pooling that sentence-transformers folders ask for."""

import json
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.values import u32
from ggufsmith.convert.architectures.classic import LLAMA, QWEN3
from ggufsmith.convert.pooling import pooling_metadata
from requesting import plan, request

MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def folder_with(folder: Path, pooling: Any, modules: Any = MODULES) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("pooling", "kind"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode_cls_token": True}, 2),
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode": "lasttoken"}, 3),
    ],
)
def test_both_spellings(tmp_path: Path, pooling: dict[str, Any], kind: int) -> None:
    folder = folder_with(tmp_path, pooling)
    assert pooling_metadata(folder, QWEN3) == {"qwen3.pooling_type": u32(kind)}
    assert pooling_metadata(folder, LLAMA) == {}


def test_it_is_in_the_file(tmp_path: Path) -> None:
    folder = folder_with(checkpoints.write("qwen3", tmp_path / "m"), {"pooling_mode": "mean"})
    assert plan(request(folder)).layout.metadata["qwen3.pooling_type"] == u32(1)


def test_a_language_model_has_none(tmp_path: Path) -> None:
    assert pooling_metadata(tmp_path, QWEN3) == {}
    assert pooling_metadata(folder_with(tmp_path, {}, MODULES[:1]), QWEN3) == {}


@pytest.mark.parametrize(
    ("pooling", "modules", "error"),
    [
        ({"pooling_mode_max_tokens": True}, MODULES, Unsupported),
        ({"pooling_mode": ["cls"]}, MODULES, Unsupported),
        ([], MODULES, Malformed),
        ({}, {"a": 1}, Malformed),
        ({}, [1], Malformed),
        ({}, [{"type": "Pooling", "path": "../.."}], Malformed),
        ({}, [{"type": "Pooling", "path": "absent"}], Malformed),
    ],
)
def test_what_it_cannot_be(tmp_path: Path, pooling: Any, modules: Any, error: type[Failure]) -> None:
    with pytest.raises(error):
        pooling_metadata(folder_with(tmp_path, pooling, modules), QWEN3)


@pytest.mark.parametrize("kind", ["sentence_transformers.models.Dense", "pylate.models.Router"])
def test_modules_that_llama_cpp_has_no_place_for(tmp_path: Path, kind: str) -> None:
    """Left out, they would change every vector."""
    folder = checkpoints.write("qwen3", tmp_path / "m")
    folder_with(folder, {"pooling_mode": "mean"}, [*MODULES, {"idx": 2, "path": "2_More", "type": kind}])
    with pytest.raises(Unsupported, match=f"no place for the module '{kind.rpartition('.')[2]}'"):
        plan(request(folder))


def test_what_llama_cpp_does_by_itself_is_no_hindrance(tmp_path: Path) -> None:
    folder = checkpoints.write("qwen3", tmp_path / "m")
    normalize = {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    folder_with(folder, {"pooling_mode": "mean"}, [*MODULES, normalize])
    assert plan(request(folder)).layout.metadata["qwen3.pooling_type"] == u32(1)
