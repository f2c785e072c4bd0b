"""`--calibrate` as users run it: killed and resumed, in jobs, and from a hub. Always the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

import checkpoints
import hub_server

pytestmark = pytest.mark.conformance

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODEL = hub_server.MODEL
NAME = "Tiny-2M-v1.0"
SETTINGS = ["--calibrate-chunks", "2", "--effort", "fast", "--device", "cpu", "--no-sync"]
LAYERS = {"num_hidden_layers": 3}
KEYS = "calibrate_chunks = 2\neffort = 'fast'\ndevice = 'cpu'\n"
# Converts as the command does, but dies, without any clean-up, when so many weights are done.
KILLED = """
import os, sys
from ggufsmith.pipeline import outputs
make_all = outputs._stream_here
left = int(sys.argv.pop(1))
def counted(tensors, targets, threads, conduct, advance):
    def told(weights):
        global left
        left -= weights
        if left < 0:
            os._exit(9)
        advance(weights)
    return make_all(tensors, targets, threads, conduct, told)
outputs._stream_here = counted
from ggufsmith.cli.app import convert_main
convert_main()
"""


def text(folder: Path, page: str = "converting") -> Path:
    path = folder / f"{page}.txt"
    path.write_text((DOCS / f"{page}.md").read_text(encoding="utf-8") * 3, encoding="utf-8", newline="\n")
    return path


def convert(code: str, *arguments: object, **around: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, **around},
    )


PLAIN = "from ggufsmith.cli.app import convert_main; convert_main()"
BATCH = "from ggufsmith.cli.app import main; main()"


def batch(path: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return convert(BATCH, "batch", path, *arguments)


def job(path: Path, head: str) -> Path:
    path.write_text(f"output = 'out'\n[defaults]\n{head}\n{KEYS}[[model]]\nsource = '{NAME}'\n", encoding="utf-8")
    return path


def calibrated(source: Path, words: Path, outdir: Path) -> bytes:
    """The bytes of a run that nothing disturbs."""
    done = convert(PLAIN, source, "-r", "q4_K_M", "--calibrate", words, *SETTINGS, "--outdir", outdir)
    assert done.returncode == 0, done.stderr
    return next(outdir.glob("*.gguf")).read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_killed_run_is_resumed(share: float, tmp_path: Path) -> None:
    source, words = checkpoints.write("llama", tmp_path / NAME, **LAYERS), text(tmp_path)
    expected = calibrated(source, words, tmp_path / "whole")
    command = [source, "-r", "q4_K_M", "--calibrate", words, *SETTINGS, "--outdir", tmp_path / "out", "--resume"]
    weights = 8 * len(expected) / 5.5
    died = convert(KILLED, int(share * weights), *command)
    assert died.returncode == 9 and not list((tmp_path / "out").glob("*.gguf")), died.stderr
    done = convert(PLAIN, *command)
    assert done.returncode == 0 and "resumed:" in done.stdout + done.stderr, done.stderr
    assert next((tmp_path / "out").glob("*.gguf")).read_bytes() == expected


def test_another_text_or_effort_is_not_resumed(tmp_path: Path) -> None:
    source, words = checkpoints.write("llama", tmp_path / NAME, **LAYERS), text(tmp_path)
    command = [source, "-r", "q4_K_M", "--calibrate", words, *SETTINGS, "--outdir", tmp_path / "out", "--resume"]
    assert convert(KILLED, 10**6, *command).returncode == 9
    other = text(tmp_path, "files")
    done = convert(PLAIN, *(other if each == words else each for each in command))
    assert done.returncode == 0 and "not resumed" in done.stdout + done.stderr
    assert next((tmp_path / "out").glob("*.gguf")).read_bytes() == calibrated(source, other, tmp_path / "whole")


def test_a_job_calibrates(tmp_path: Path) -> None:
    source, words = checkpoints.write("llama", tmp_path / NAME, **LAYERS), text(tmp_path)
    expected = calibrated(source, words, tmp_path / "whole")
    path = job(tmp_path / "jobs.toml", f"recipes = 'q4_K_M'\ncalibrate = '{words.name}'")
    priced = batch(path, "--dry-run", "--json")
    assert priced.returncode == 0 and f'"bytes": {len(expected)}' in priced.stdout, priced.stderr
    done = batch(path, "--no-sync")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / NAME / f"{NAME}-Q4_K_M.gguf").read_bytes() == expected
    assert '"finished"' in batch(path, "--json").stdout, "what is there is not made again"
    words.write_text(words.read_text(encoding="utf-8") + "One line more.\n" * 400, encoding="utf-8", newline="\n")
    assert '"done"' in batch(path, "--json", "--no-sync").stdout, "another text gives other bytes"


def test_a_job_calibrates_for_a_budget(tmp_path: Path) -> None:
    checkpoints.write("llama", tmp_path / NAME, **LAYERS)
    path = job(tmp_path / "jobs.toml", f"target_bpw = 5.5\ncalibrate = '{text(tmp_path).name}'")
    done = batch(path, "--no-sync", "--max-memory", "4G")
    assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "out").rglob("*.gguf")
    assert b"ggufsmith-calibrated" in made.read_bytes()[:100_000]
    refused = batch(path, "--no-sync", "--max-memory", "500M", "--verify-finished")
    assert refused.returncode == 0, "finished outputs need no memory"


@pytest.mark.parametrize("stream", [True, False])
def test_a_model_on_a_hub(stream: bool, tmp_path: Path) -> None:
    checkpoints.write("llama", tmp_path / "hub" / MODEL, shards=2, **LAYERS)
    words = text(tmp_path)
    expected = calibrated(tmp_path / "hub" / MODEL, words, tmp_path / "whole")
    with hub_server.serving(tmp_path / "hub") as hub:
        around = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "no_proxy": "*"}
        flags = ["--stream"] if stream else []
        command = ["-r", "q4_K_M", "--calibrate", words, *SETTINGS, *flags, "--outdir", tmp_path / "out"]
        done = convert(PLAIN, f"hf://{MODEL}", *command, **around)
        assert done.returncode == 0, done.stderr
    (made,) = (tmp_path / "out").glob("*.gguf")
    assert len(made.read_bytes()) == pytest.approx(len(expected), abs=4096)
    assert made.read_bytes()[-200_000:] == expected[-200_000:]


def test_activations_that_are_not_finite(tmp_path: Path) -> None:
    """From the block on in which they overflow, matrices have the bytes of a run without calibration."""
    source, words = checkpoints.write("llama", tmp_path / NAME, **LAYERS), text(tmp_path)
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.post_attention_layernorm.weight"] *= 1e30
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    done = convert(PLAIN, source, "-r", "q4_K_M", "--calibrate", words, *SETTINGS, "--outdir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "because the inputs of the layer are not all finite: blk.1.ffn_down.weight" in said and "blk.2." in said
    assert convert(PLAIN, source, "-r", "q4_K_M", "--outdir", tmp_path / "plain").returncode == 0
    (made,), (plain,) = ((tmp_path / name).glob("*.gguf") for name in ("out", "plain"))
    tensors = [{each.name: each.data.tobytes() for each in GGUFReader(path).tensors} for path in (made, plain)]
    for name, data in tensors[0].items():
        refined = name.startswith(("blk.0.", "blk.1.attn")) and "norm" not in name
        assert (data == tensors[1][name]) != refined, name


def test_a_text_that_is_shorter_than_the_matrices_are_wide(tmp_path: Path) -> None:
    source, words = checkpoints.write("llama", tmp_path / NAME, intermediate_size=768, **LAYERS), text(tmp_path)
    settings = ["--calibrate-chunks", "1", *SETTINGS[2:]]
    done = convert(PLAIN, source, "-r", "q4_K_M", "--calibrate", words, *settings, "--outdir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "the text is short: 512 tokens for matrices of 768 columns" in " ".join((done.stdout + done.stderr).split())
