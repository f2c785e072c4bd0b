"""A run that resumes another gives the bytes of a fresh one, whatever was changed between the kill and the next run."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adapters
import checkpoints
import quantized
from faulted import run_faulty

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the places of faults are the calls made on Linux")

Change = Callable[[Path], None]


def setting(file: str, **values: Any) -> Change:
    """Put these values into a JSON file of the inputs; mappings are merged."""

    def change(folder: Path) -> None:
        found = json.loads((folder / file).read_text(encoding="utf-8"))
        for key, value in values.items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, dict) else value
        (folder / file).write_text(json.dumps(found), encoding="utf-8")

    return change


def merged(folder: Path) -> tuple[str, ...]:
    checkpoints.write("llama", folder / "base")
    adapters.write(folder / "base", folder / "adapter", targets=adapters.ALL)
    return str(folder / "base"), "--lora", str(folder / "adapter")


def adapter_alone(folder: Path) -> tuple[str, ...]:
    merged(folder)
    return (str(folder / "adapter"),)


def gptq(folder: Path) -> tuple[str, ...]:
    config = {"quant_method": "gptq", "bits": 4, "group_size": 64, "checkpoint_format": "gptq"}
    quantized.write_gptq("llama", folder / "base", config=config, group=64)
    return (str(folder / "base"),)


def gptq_beside(folder: Path) -> tuple[str, ...]:
    """The settings in a file of their own."""
    quantized.write_gptq("llama", folder / "base", group=64)
    stated = {"bits": 4, "group_size": 64, "checkpoint_format": "gptq"}
    (folder / "base" / "quantize_config.json").write_text(json.dumps(stated), encoding="utf-8")
    return (str(folder / "base"),)


def plain(folder: Path) -> tuple[str, ...]:
    checkpoints.write("llama", folder / "base")
    (folder / "metadata.json").write_text(json.dumps({"general.author": "A"}), encoding="utf-8")
    return str(folder / "base"), "--metadata", str(folder / "metadata.json")


CASES: dict[str, tuple[Callable[[Path], tuple[str, ...]], Change]] = {
    "lora_alpha": (merged, setting("adapter/adapter_config.json", lora_alpha=24)),
    "use_rslora": (merged, setting("adapter/adapter_config.json", use_rslora=True)),
    "alpha_pattern": (merged, setting("adapter/adapter_config.json", alpha_pattern={"q_proj": 48})),
    "an adapter's alpha": (adapter_alone, setting("adapter/adapter_config.json", alpha_pattern={"q_proj": 48})),
    "checkpoint_format": (gptq, setting("base/config.json", quantization_config={"checkpoint_format": "gptq_v2"})),
    "quantize_config.json": (gptq_beside, setting("base/quantize_config.json", checkpoint_format="gptq_v2")),
    "tokenizer_config.json": (plain, setting("base/tokenizer_config.json", chat_template="{{ messages }}")),
    "generation_config.json": (plain, lambda folder: _write(folder / "base" / "generation_config.json")),
    "--metadata": (plain, setting("metadata.json", **{"general.author": "B"})),
    "rms_norm_eps": (plain, setting("base/config.json", rms_norm_eps=1e-6)),
}


def _write(path: Path) -> None:
    path.write_text(json.dumps({"temperature": 0.5}), encoding="utf-8")


def kill_and_resume(
    arguments: tuple[str, ...], folder: Path, change: Callable[[], None], at: int = 16
) -> dict[str, Any]:
    """What the second run reports, its outputs being those of a run that begins afresh."""
    for name in ("out", "again"):
        (folder / name).mkdir()

    def run(fault: str, out: str) -> Any:
        return run_faulty(*fault.split(), *arguments, "--outdir", folder / out, "--json", "--resume")

    assert run(f"SIGKILL pwrite {at}", "out").returncode == -signal.SIGKILL
    change()
    resumed = run("none getpid 0", "out")
    assert resumed.returncode == 0, resumed.stderr
    fresh = run("none getpid 0", "again")
    assert fresh.returncode == 0, fresh.stderr
    contents = [{file.name: file.read_bytes() for file in (folder / name).iterdir()} for name in ("out", "again")]
    assert contents[0].keys() == contents[1].keys()
    for name, data in contents[0].items():
        assert data == contents[1][name], f"{name} has bytes from before the change"
    found: dict[str, Any] = json.loads(resumed.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_setting_that_was_changed(tmp_path: Path, case: str) -> None:
    make, change = CASES[case]
    arguments = ("convert", *make(tmp_path), *(() if make is adapter_alone else ("--outtype", "f32")))
    found = kill_and_resume(arguments, tmp_path, lambda: change(tmp_path))["found"]
    assert [note.split(":")[0] for note in found] == ["not resumed"]


def test_nothing_that_matters_was_changed(tmp_path: Path) -> None:
    """A small file that is written again, with the same content, is the same input."""
    arguments = ("convert", *merged(tmp_path), "--outtype", "f32")
    config = tmp_path / "adapter" / "adapter_config.json"
    found = kill_and_resume(arguments, tmp_path, lambda: config.write_bytes(config.read_bytes()))["found"]
    assert [note.split(":")[0] for note in found] == ["resumed"]


@pytest.mark.parametrize("option", ["--prune-layers", "--include-weights"])
def test_an_option_of_quant(tmp_path: Path, option: str) -> None:
    """What a GGUF file is quantized with: the importance of its columns, and which of its layers."""
    checkpoints.write("llama", tmp_path / "base")
    whole = tmp_path / "whole.gguf"
    assert run_faulty("none", "getpid", 0, "convert", tmp_path / "base", "-o", whole).returncode == 0
    importance = tmp_path / "imatrix.dat"
    more = {"--prune-layers": ("0", "1"), "--include-weights": ("attn_q", "attn_k")}[option]
    for name in ("out", "again"):
        (tmp_path / name).mkdir()
    _imatrix(importance)

    def run(fault: str, out: str, value: str) -> Any:
        arguments = ("quant", whole, "--recipe", "q4_0", "--imatrix", importance, option, value)
        return run_faulty(*fault.split(), *arguments, "--outdir", tmp_path / out, "--json", "--resume")

    assert run("SIGKILL pwrite 8", "out", more[0]).returncode == -signal.SIGKILL
    for name in ("out", "again"):
        done = run("none getpid 0", name, more[1])
        assert done.returncode == 0, done.stderr
    first, second = (next((tmp_path / name).iterdir()).read_bytes() for name in ("out", "again"))
    assert first == second


def _imatrix(path: Path) -> None:
    """A legacy importance matrix for the attention of both blocks."""
    rng = np.random.default_rng(5)
    names = [f"blk.{block}.attn_{part}.weight" for block in range(2) for part in "qkv"]
    data = len(names).to_bytes(4, "little")
    for name in names:
        values = rng.random(256).astype("<f4")
        data += len(name).to_bytes(4, "little") + name.encode() + (1).to_bytes(4, "little")
        data += values.size.to_bytes(4, "little") + values.tobytes()
    path.write_bytes(data)


def test_a_batch(tmp_path: Path) -> None:
    """A job goes on from where it was killed, and not with what its adapter said before."""
    base, _, adapter = merged(tmp_path)
    for name in ("out", "again"):
        (tmp_path / name).mkdir()
        entry = f"source = '{base}'\nlora = ['{adapter}']\n"
        text = f"output = '{name}'\n[defaults]\nouttypes = ['f32']\nrecipes = ['q8_0']\n[[model]]\n{entry}"
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    killed = run_faulty("SIGKILL", "pwrite", 16, "batch", tmp_path / "out.toml")
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "out").rglob(".*.partial"))
    setting("adapter/adapter_config.json", lora_alpha=24)(tmp_path)
    for name in ("out", "again"):
        done = run_faulty("none", "getpid", 0, "batch", tmp_path / f"{name}.toml")
        assert done.returncode == 0, done.stderr
    found = [
        {file.name: file.read_bytes() for file in sorted((tmp_path / name).rglob("*.gguf"))}
        for name in ("out", "again")
    ]
    assert len(found[0]) == 2 and found[0] == found[1]
