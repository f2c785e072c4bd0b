"""Conversions straight from a hub: the same bytes as from the disk, nothing stored, or an error and no output."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import adapters
import checkpoints
import hub_server
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.hub.download import download, streamed
from ggufsmith.convert.hub.huggingface import HuggingFace
from ggufsmith.convert.hub.names import HubModel, Located
from hub_server import MODEL, Fault
from requesting import plan, request, run

CONVERT = [sys.executable, "-c", "from ggufsmith.cli.app import convert_main; convert_main()"]


@contextmanager
def opened(hub: hub_server.Hub, cache: Path, name: str = MODEL) -> Iterator[Located]:
    with streamed(HubModel("hf", name), HuggingFace(endpoint=hub.url, cache=cache)) as found:
        yield found


def converted(found: Located, output: Path) -> bytes:
    run(request(found.folder, outfile=output), open_files=found.open_files)
    return output.read_bytes()


def stored_bytes(folder: Path) -> int:
    """What the files take on the disk, where that can be known."""
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in folder.rglob("*.safetensors") if path.is_file())


def test_the_same_bytes_as_from_the_disk_and_nothing_stored(hub: hub_server.Hub, tmp_path: Path) -> None:
    with opened(hub, tmp_path / "cache") as found:
        streamed_bytes = converted(found, tmp_path / "a.gguf")
        assert stored_bytes(found.folder) < 100_000
        assert sum(path.stat().st_size for path in found.folder.glob("*.safetensors")) > 1_000_000
    assert not found.folder.exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    model, client = HubModel("hf", MODEL), HuggingFace(endpoint=hub.url, cache=tmp_path / "cache")
    assert streamed_bytes == converted(download(model, client), tmp_path / "b.gguf")


def test_recipes_from_a_stream(hub: hub_server.Hub, tmp_path: Path) -> None:
    with opened(hub, tmp_path / "cache") as found:
        run(request(found.folder, "q8_0", outfile=tmp_path / "a.gguf"), open_files=found.open_files)
    run(request(hub.root / MODEL, "q8_0", outfile=tmp_path / "b.gguf"))
    with open_gguf(tmp_path / "a.gguf") as a, open_gguf(tmp_path / "b.gguf") as b:
        assert a.tensors.keys() == b.tensors.keys()
        for name, info in a.tensors.items():
            ours, theirs = bytearray(info.nbytes), bytearray(info.nbytes)
            a.read_into(info, 0, ours)
            b.read_into(b.tensors[name], 0, theirs)
            assert ours == theirs, name


def test_an_adapter_from_a_stream(tmp_path: Path) -> None:
    """What stands in for its weights on the disk holds zeros."""
    base = checkpoints.write("qwen2", tmp_path / "base")
    adapters.write(base, tmp_path / "hub" / "org" / "Adapter", rank=64)
    with hub_server.serving(tmp_path / "hub") as hub, opened(hub, tmp_path / "cache", "org/Adapter") as found:
        run(request(found.folder, outfile=tmp_path / "a.gguf", base=base), open_files=found.open_files)
    run(request(tmp_path / "hub" / "org" / "Adapter", outfile=tmp_path / "b.gguf", base=base))
    with open_gguf(tmp_path / "a.gguf") as a, open_gguf(tmp_path / "b.gguf") as b:
        for name, info in a.tensors.items():
            ours, theirs = bytearray(info.nbytes), bytearray(info.nbytes)
            a.read_into(info, 0, ours)
            b.read_into(b.tensors[name], 0, theirs)
            assert ours == theirs != bytes(info.nbytes), name


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault("cdn", status=404, times=None), Failure, "404"),
        (Fault("cdn", etag='"x"', times=None), Malformed, "changed while it was read"),
        (Fault("cdn", plain=True, times=None), Unsupported, "ranges"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_fails_underway_leaves_no_output(
    hub: hub_server.Hub, tmp_path: Path, fault: Fault, kind: type[Failure], message: str
) -> None:
    with opened(hub, tmp_path / "cache") as found:
        hub.faults = [fault]
        with pytest.raises(kind, match=message):
            converted(found, tmp_path / "a.gguf")
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob(".*"))


def test_a_stream_that_broke_is_resumed(hub: hub_server.Hub, tmp_path: Path) -> None:
    """The same commit is the same input, wherever its headers are kept meanwhile."""

    def interrupt(weights: int) -> None:
        raise KeyboardInterrupt

    def attempt(name: str, advance: Callable[[int], None] = lambda weights: None) -> tuple[str, ...]:
        with opened(hub, tmp_path / "cache") as found:
            return run(
                request(found.folder, outfile=tmp_path / name, resume=True), advance, open_files=found.open_files
            ).notes

    with pytest.raises(KeyboardInterrupt):
        attempt("a.gguf", interrupt)
    assert [note.split(":")[0] for note in attempt("a.gguf")] == ["resumed"]
    assert attempt("b.gguf") == ()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_pickled_weights_have_to_be_downloaded(hub: hub_server.Hub, tmp_path: Path) -> None:
    with (
        pytest.raises(Unsupported, match=r"pytorch_model\.bin is a pickled checkpoint"),
        opened(hub, tmp_path, "org/Pickled-1B"),
    ):
        pass


@pytest.mark.parametrize("damage", ["truncated", "header"])
def test_a_damaged_file_on_the_hub(tmp_path: Path, damage: str) -> None:
    folder = checkpoints.write("llama", tmp_path / "hub" / "org" / "Bad")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1000] if damage == "truncated" else data[:8] + b"[" + data[9:])
    message = "truncated" if damage == "truncated" else "not a valid safetensors"
    with (
        hub_server.serving(tmp_path / "hub") as hub,
        opened(hub, tmp_path / "cache", "org/Bad") as found,
        pytest.raises(Malformed, match=message),
    ):
        plan(request(found.folder), open_files=found.open_files)


# ---- the command ----


def command(hub: hub_server.Hub, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "PYTHONUTF8": "1"}
    return subprocess.Popen(
        [*CONVERT, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_the_command_writes_into_the_current_folder(hub: hub_server.Hub, tmp_path: Path) -> None:
    process = command(hub, tmp_path, MODEL, "--revision", "main", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["outputs"][0]["output"] == ["Tiny-1B-F16.gguf"]
    assert (tmp_path / "Tiny-1B-F16.gguf").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "q4km"], "Did you mean"),
        (["--outtype", "f99"], "unknown output type 'f99'"),
        (["--outtype", "f16", "--recipe", "q8_0", "-o", "x.gguf"], "--outfile names one file"),
        (["--tokenizer", "."], "--tokenizer cannot be used"),
        (["--split-max-size", "many"], "size"),
        (["--lora", "x:half"], "'half'"),
        (["--pure"], "no recipe"),
        (["-o", "x.gguf", "--outdir", "y"], "both say"),
        (["--vocab-only", "--recipe", "q8_0"], "nothing to quantize"),
    ],
)
def test_what_is_wrong_with_the_options_is_said_before_anything_is_downloaded(
    hub: hub_server.Hub, tmp_path: Path, options: list[str], message: str
) -> None:
    process = command(hub, tmp_path, MODEL, *options)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and message in err, err
    assert not hub.requests


@pytest.mark.parametrize(("name", "noted"), [("models/tiny", True), ("hf://models/tiny", False)])
def test_a_folder_that_is_not_there_is_mentioned(hub: hub_server.Hub, tmp_path: Path, name: str, noted: bool) -> None:
    process = command(hub, tmp_path, name)
    _, err = process.communicate(timeout=60)
    assert process.returncode and ("no folder or file 'models/tiny'" in err) == noted, err


def test_a_dry_run_reads_headers_only(hub: hub_server.Hub, tmp_path: Path) -> None:
    process = command(hub, tmp_path, f"hf://{MODEL}", "--dry-run", "--json")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["outputs"][0]["bytes"] > 1_000_000
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("options", [(), ("--stream",)])
def test_an_interrupt_ends_it_at_once(hub: hub_server.Hub, tmp_path: Path, options: tuple[str, ...]) -> None:
    hub.faults = [Fault("cdn", times=3), Fault("cdn", pause=30, times=None)] if options else [Fault("cdn", pause=2)]
    process = command(hub, tmp_path, MODEL, *options)
    while not any(request.path.startswith("/cdn") for request in hub.requests):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, (out, err)
    assert "no partial files were left" in err
    assert not list(tmp_path.glob("*.gguf"))
