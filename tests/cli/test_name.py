"""`ggufsmith name`."""

import json
from pathlib import Path

from commands import run

import checkpoints
from ggufsmith.cli.name import name
from ggufsmith.cli.split import split
from requesting import request
from requesting import run as convert


def test_the_examples_of_the_specification() -> None:
    done = run(
        name,
        "Mixtral-8x7B-v0.1-KQ2.gguf",
        "Hermes-2-Pro-Llama-3-8B-F16.gguf",
        "Grok-100B-v1.0-Q4_0-00003-of-00009.gguf",
    )
    assert done.exit_code == 0
    assert done.output.count("conforms") == 3
    assert "shard       3 of 9" in done.output


def test_the_letter() -> None:
    done = run(name, "--strict-name", "Hermes-2-Pro-Llama-3-8B-F16.gguf")
    assert done.exit_code == 2
    assert "no version, such as v1.0" in done.output
    assert "suggested   Hermes-2-Pro-Llama-3-8B-v1.0-F16.gguf" in done.output
    assert run(name, "--strict-name", "Hermes-2-Pro-Llama-3-8B-v1.0-F16.gguf").exit_code == 0


def test_no_gguf_name() -> None:
    done = run(name, "model.safetensors")
    assert done.exit_code == 2
    assert "is not a name ending in .gguf" in done.output


def test_a_file_and_its_header(tmp_path: Path) -> None:
    folder = checkpoints.write("llama", tmp_path / "Tiny-2M-Chat-v0.3")
    model = tmp_path / "wrong-9B-Q4_0.gguf"
    convert(request(folder, outfile=model))
    (report,) = json.loads(run(name, model, "--json").output)["names"]
    assert report["components"] == {"base": "wrong", "size_label": "9B", "encoding": "Q4_0"}
    assert report["suggested"] == "Tiny-2M-Chat-v0.3-F16.gguf"
    assert report["problems"] == [
        "base: the name says wrong, the header Tiny",
        "size label: the name says 9B, the header 2M",
        "encoding: the name says Q4_0, the header F16",
    ]
    assert run(split, model, "--split-max-tensors", 9, "--no-tensor-first-split").exit_code == 0
    first, second = sorted(tmp_path.glob("wrong-*-of-00004.gguf"))[:2]
    (report,) = json.loads(run(name, first, "--json").output)["names"]
    assert report["suggested"] == "Tiny-2M-Chat-v0.3-F16-00001-of-00004.gguf"
    second.unlink()
    (report,) = json.loads(run(name, first, "--json").output)["names"]
    assert report["suggested"] == "Tiny-2M-Chat-v0.3-F16-00001-of-00004.gguf"
