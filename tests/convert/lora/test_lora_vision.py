"""Adapters of Gemma 3's multimodal class: what is dropped from the base is dropped from them, and said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import adapters
import checkpoints
from ggufsmith.container.errors import Failure, Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.pipeline.request import Request
from requesting import plan, request, run

TOWER = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"
PROJECTOR = "multi_modal_projector.mm_input_projection"
Rename = Callable[[str], str]
# How transformers names the language model's modules inside: before and after 4.52.
OLD: Rename = lambda name: f"language_model.{name}"  # noqa: E731
NEW: Rename = lambda name: f"model.language_model.{name.removeprefix('model.')}"  # noqa: E731


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.write("gemma3", tmp_path_factory.mktemp("base") / "text", dtype="float32")


@pytest.fixture(scope="module")
def multimodal(text: Path) -> Path:
    """The same text model inside the class with a vision encoder."""
    folder = text.parent / "mm"
    shutil.copytree(text, folder)
    config = json.loads((text / "config.json").read_text(encoding="utf-8"))
    tensors = {OLD(name): tensor for name, tensor in checkpoints.tensors_of(config, "float32").items()}
    tensors[f"{TOWER}.weight"] = np.ones((16, 16), np.float32)
    tensors["multi_modal_projector.mm_input_projection_weight"] = np.ones((16, 64), np.float32)
    checkpoints.save(tensors, folder / "model.safetensors", "float32")
    inner = {key: value for key, value in config.items() if key != "architectures"}
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": inner}
    (folder / "config.json").write_text(json.dumps({**whole, "vision_config": {"hidden_size": 16}}), encoding="utf-8")
    return folder


def vision(prefix: str = "", module: str = TOWER) -> dict[str, np.ndarray]:
    a, b = np.ones((4, 16), np.float32), np.ones((16, 4), np.float32)
    return {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}


def write(base: Path, folder: Path, rename: Rename, more: dict[str, np.ndarray], text: Path) -> Path:
    """An adapter of the text model's projections under other names, and more."""
    parts = adapters.write(text, folder, targets=adapters.ALL)
    named = {rename(name): array for name, array in parts.items()}
    adapters.write(text, folder, targets=(), whole={**named, **more}, named=str(base))
    return folder


def tensors(job: Request) -> dict[str, bytes]:
    planned = plan(job)
    run(planned)
    path = planned.output.path
    with open_gguf(path) as gguf:
        data = path.read_bytes()
        return {info.name: data[info.offset : info.offset + info.nbytes] for info in gguf.tensors.values()}


@pytest.mark.parametrize(
    ("rename", "more"),
    [
        (OLD, vision()),
        (NEW, vision("model.")),
        (OLD, vision(module=PROJECTOR)),
        (OLD, {**vision(), f"{TOWER}.bias": np.ones(16, np.float32)}),
    ],
)
def test_the_vision_part_is_left_out_and_said(
    tmp_path: Path, text: Path, multimodal: Path, rename: Rename, more: dict[str, np.ndarray]
) -> None:
    plain = adapters.write(text, tmp_path / "plain", targets=adapters.ALL) and tmp_path / "plain"
    adapter = write(multimodal, tmp_path / "mm-lora", rename, more, text)
    for base, inner in ((multimodal, multimodal), (text, text)):
        for job, expected in (
            (request(adapter, base=base, outfile=tmp_path / "a.gguf"), request(plain, outfile=tmp_path / "b.gguf")),
            (
                request(base, lora=((adapter, 1.0),), outfile=tmp_path / "c.gguf"),
                request(text, lora=((plain, 1.0),), outfile=tmp_path / "d.gguf"),
            ),
        ):
            assert tensors(job) == tensors(expected), inner
            notes = plan(job).notes
            assert any("mm-lora" in note and "vision" in note and "dropped" in note for note in notes), notes


def test_an_adapter_of_the_vision_part_alone(tmp_path: Path, text: Path, multimodal: Path) -> None:
    adapters.write(text, tmp_path, targets=(), whole=vision())
    for job in (request(tmp_path, base=multimodal), request(multimodal, lora=((tmp_path, 1.0),))):
        with pytest.raises(Unsupported, match="everything that it trains is left out of the model: the vision encoder"):
            plan(job)


def test_what_no_base_drops_is_still_an_error(tmp_path: Path, text: Path, multimodal: Path) -> None:
    adapters.write(text, tmp_path, targets=(), whole=vision(module="audio_tower.layers.0.q_proj"))
    with pytest.raises(Failure, match="audio_tower"):
        plan(request(tmp_path, base=multimodal))
