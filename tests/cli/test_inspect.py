"""`ggufsmith inspect`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run
from gguf.constants import GGUFValueType as ValueType

from ggufsmith.cli.inspect import inspect
from ggufsmith.cli.split import split
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.summary import role, shown
from ggufsmith.container.values import Metadata, Value, array, f32, string, strings, u32
from ggufsmith.container.writer import Writer

META: Metadata = {
    "general.architecture": string("llama"),
    "general.name": string("Tiny [bold]Llama[/bold]\x1b[2J"),
    "scale": f32(float("nan")),
    "tokenizer.ggml.tokens": strings([f"<{k}>" for k in range(1000)]),
    "few": array(np.arange(3, dtype="<i4")),
}
SPECS = (
    TensorSpec("token_embd.weight", (10, 256), format_of("Q6_K")),
    TensorSpec("blk.0.attn_q.weight", (256, 256), format_of("Q4_K")),
    TensorSpec("blk.0.attn_norm.weight", (256,), format_of("F32")),
    TensorSpec("\x1b[31mname", (32,), format_of("Q4_0")),
)


F32 = format_of("F32")


def write(path: Path, metadata: Metadata = META, specs: tuple[TensorSpec, ...] = SPECS) -> Path:
    layout = lay_out(metadata, specs)
    with Writer(path, layout, sync=False) as writer:
        for spec, offset in zip(specs, layout.offsets, strict=True):
            writer.write(offset, bytes(spec.nbytes))
        writer.commit()
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "m.gguf")


def test_a_pipe_gets_plain_text(model: Path) -> None:
    done = run(inspect, model)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert r"Tiny [bold]Llama[/bold]\x1b[2J, llama, 68.4 thousand weights" in done.output
    assert "4 (1 Q4_K, 1 Q6_K, 1 F32, 1 Q4_0), 4.68 bits per weight" in done.output
    assert 'string[1000]  ["<0>", "<1>", "<2>", "<3>", "<4>", "<5>", "<6>", "<7>", …]' in done.output
    assert "int32[3]      [0, 1, 2]" in done.output
    assert "blk.0.attn_q.weight     256 x 256  Q4_K  36864" in done.output
    assert r"\x1b[31mname" in done.output
    assert "attn_q" not in run(inspect, model, "--no-tensors").output


def test_a_terminal_gets_tables(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    done = run(inspect, model)
    assert done.exit_code == 0, done.output
    assert "─" in done.output
    assert "\x1b[2J" not in done.output
    assert "\x1b[31m" not in done.output


def test_json(model: Path) -> None:
    report = json.loads(run(inspect, model, "--json").output)
    assert report["files"] == [{"path": str(model), "bytes": model.stat().st_size, "tensor_count": 4}]
    assert (report["version"], report["alignment"], report["tensor_count"]) == (3, 32, 4)
    assert report["parameters"] == 10 * 256 + 256 * 256 + 256 + 32
    assert report["bits_per_weight"] == 8 * report["tensor_bytes"] / report["parameters"]
    assert report["types"]["Q4_K"] == {"tensors": 1, "weights": 65536, "bytes": 36864}
    assert list(report["roles"]) == ["attention", "embedding", "norm", "other"]
    assert report["metadata"]["scale"] == {"type": "float32", "value": "nan"}
    assert report["metadata"]["tokenizer.ggml.tokens"]["length"] == 1000
    assert len(report["metadata"]["tokenizer.ggml.tokens"]["value"]) == 8
    assert report["tensors"][3]["name"] == "\x1b[31mname"


def test_a_shard_shows_its_set(model: Path) -> None:
    assert run(split, model, "--split-max-tensors", 2).exit_code == 0
    report = json.loads(run(inspect, model.with_name("m-00002-of-00002.gguf"), "--json").output)
    assert [file["tensor_count"] for file in report["files"]] == [2, 2]
    assert report["tensors"][2]["file"] == "m-00002-of-00002.gguf"
    assert "split.no" not in report["metadata"]


def test_the_difference_of_two(model: Path, tmp_path: Path) -> None:
    changed = {
        **META,
        "few": array(np.array([0, 5, 2, 3], "<i4")),
        "general.name": string("Other"),
        "new": u32(1),
    }
    del changed["scale"]
    specs = (SPECS[0], TensorSpec(SPECS[1].name, (256, 256), format_of("Q5_K")), SPECS[2])
    other = write(tmp_path / "o.gguf", changed, specs)
    report = json.loads(run(inspect, model, other, "--json").output)
    assert report["keys"]["only_first"] == ["scale"]
    assert report["keys"]["only_second"] == ["new"]
    assert list(report["keys"]["changed"]) == ["general.name", "few"]
    few = report["keys"]["changed"]["few"]
    assert (few["at"], few["first"]["value"], few["second"]["value"]) == (1, [1], [5])
    assert report["tensors"]["only_first"] == ["\x1b[31mname"]
    assert report["tensors"]["types"] == [{"first": "Q4_K", "second": "Q5_K", "tensors": 1}]
    text = run(inspect, model, other).output
    assert "few[1]" in text
    assert "Q4_K [256, 256]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("files", [1, 2])
def test_no_tensors_lists_none(model: Path, tmp_path: Path, files: int) -> None:
    """Of one file or two, for people and for machines; what they add up to stays."""
    specs = (SPECS[0], TensorSpec(SPECS[1].name, (256, 256), format_of("Q5_K")), TensorSpec("more", (32,), F32))
    given = [model, write(tmp_path / "o.gguf", META, specs)][:files]
    for options in ([], ["--json"]):
        done = run(inspect, *given, "--no-tensors", *options)
        assert done.exit_code == 0
        assert not any(name in done.output for name in ("attn_q", "attn_norm", "31mname", "more")), done.output
        assert "Q4_K" in done.output
    report = json.loads(run(inspect, *given, "--no-tensors", "--json").output)
    if files == 2:
        assert report["tensor_counts"] == {"only_first": 2, "only_second": 1, "changed": 1}
    else:
        assert report["tensor_count"] == 4


def test_no_difference(model: Path) -> None:
    report = json.loads(run(inspect, model, model, "--json").output)
    assert not any(report["keys"].values())
    assert not any(report["tensors"].values())
    assert "no differences" in run(inspect, model, model).output


def test_errors(model: Path, tmp_path: Path) -> None:
    assert run(inspect, tmp_path / "absent.gguf").exit_code == 2
    assert run(inspect, model, model, model).exit_code == 2
    (tmp_path / "no.gguf").write_bytes(b"no GGUF at all, but long enough")
    assert run(inspect, tmp_path / "no.gguf").exit_code == 4


def test_a_file_without_tensors(tmp_path: Path) -> None:
    assert "tensors  0\n" in run(inspect, write(tmp_path / "vocab.gguf", META, ())).output


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "embedding"),
        ("output.weight", "output"),
        ("output_norm.weight", "norm"),
        ("blk.3.attn_q_norm.weight", "norm"),
        ("blk.3.attn_q.bias", "attention"),
        ("blk.3.ffn_down_exps.weight", "experts"),
        ("blk.3.ffn_down_shexp.weight", "shared experts"),
        ("blk.3.ffn_gate_inp.weight", "router"),
        ("blk.3.ffn_gate_inp_shexp.weight", "router"),
        ("blk.3.ffn_down.weight", "feed-forward"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_roles(name: str, expected: str) -> None:
    assert role(name) == expected


def test_shown() -> None:
    assert shown("a\nb\udcff\u202e") == r"a\nb\udcff\u202e"
    assert shown("x" * 200) == "x" * 99 + "…"
    assert shown(["\x1b"]) == r'["\u001b"]'
    assert Value(ValueType.FLOAT32, 1.0) == f32(1)


def test_the_page_shows_sizes_and_types_and_runs_nothing(model: Path, tmp_path: Path) -> None:
    hostile = {**META, "general.name": string('<script>alert("x")</script>')}
    path, target = (
        write(tmp_path / "h.gguf", hostile, (*SPECS[:3], replace(SPECS[3], name="<b>bold"))),
        tmp_path / "p.html",
    )
    done = run(inspect, path, "--html", target)
    assert done.exit_code == 0, done.output
    page = target.read_text(encoding="utf-8")
    assert str(target) in done.output and "<script" not in page and "<b>" not in page and "\x1b" not in page
    assert "&lt;script&gt;" in page and "http" not in page  # nothing is fetched from elsewhere
    assert page.count('class="type"') == 2 and ">Q4_K</td>" in page and ">Q6_K</td>" in page
    largest = run(inspect, path, "--json")
    assert next(iter(json.loads(largest.output)["roles"])) in page


def test_the_page_marks_what_differs_in_two_files(model: Path, tmp_path: Path) -> None:
    specs = (SPECS[0], replace(SPECS[1], format=format_of("Q5_K")), *SPECS[2:])
    other, target = write(tmp_path / "other.gguf", META, specs), tmp_path / "p.html"
    assert run(inspect, model, other, "--html", target).exit_code == 0
    page = target.read_text(encoding="utf-8")
    assert page.count('class="type changed"') == 1 and ">Q4_K → Q5_K</td>" in page


def test_a_page_never_takes_the_place_of_a_model(model: Path) -> None:
    before = model.read_bytes()
    done = run(inspect, model, "--html", model)
    assert done.exit_code == 2 and "ends in .html" in done.output and model.read_bytes() == before
