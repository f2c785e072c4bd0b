"""Models in several files: where they are cut, how a set is read, and that it is never half there."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf.constants import GGUFValueType as ValueType

from ggufsmith.container.copy import copy, plan_merge, plan_split
from ggufsmith.container.errors import Failure, Malformed, NoSpace, OutputConflict, Usage
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.shards import Limits, SetWriter, open_gguf_set, plan_shards
from ggufsmith.container.values import Value, i32, string, strings
from ggufsmith.container.writer import Writer

Q8, F32 = format_of("Q8_0"), format_of("F32")
SPECS = (*(TensorSpec(f"t{k}", (k + 1, 32), Q8) for k in range(6)), TensorSpec("last", (5,), F32))
META = {"general.architecture": string("llama"), "tokens": strings(["a", "b"])}
LAYOUT = lay_out(META, SPECS)
DATA = [np.random.default_rng(k).bytes(spec.nbytes) for k, spec in enumerate(SPECS)]
COUNTS = (3, 0, 4)
NAMES = [f"m-0000{k}-of-00003.gguf" for k in (1, 2, 3)]


def fill(writer: Writer | SetWriter, layout: Layout, data: list[bytes] = DATA) -> None:
    for offset, content in zip(layout.offsets, data, strict=True):
        writer.write(offset, content)


def write_set(folder: Path, data: list[bytes] = DATA, counts: tuple[int, ...] = COUNTS, **options: object) -> Path:
    plan = plan_shards(LAYOUT, counts)
    with SetWriter(folder / "m.gguf", plan, **options) as writer:  # type: ignore[arg-type]
        fill(writer, plan.whole, data)
        writer.commit()
    return writer.paths[0]


def write_one(path: Path, layout: Layout = LAYOUT, data: list[bytes] = DATA) -> Path:
    with Writer(path, layout, sync=False) as writer:
        fill(writer, layout, data)
        writer.commit()
    return path


def contents(path: Path) -> dict[str, bytes]:
    with open_gguf_set(path) as model:
        found = {}
        for name, tensor in model.tensors.items():
            buffer = bytearray(tensor.nbytes)
            model.read_into(tensor, 0, buffer)
            found[name] = bytes(buffer)
        return found


WHOLE = {spec.name: content for spec, content in zip(SPECS, DATA, strict=True)}
OTHER = [bytes(len(content)) for content in DATA]


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# ---- where to cut ----


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        (Limits(), (7,)),
        (Limits(max_tensors=3), (3, 3, 1)),
        (Limits(max_tensors=7), (7,)),
        (Limits(max_tensors=4, header_alone=True), (0, 4, 3)),
        (Limits(max_size=288), (3, 1, 1, 2)),  # padded, the tensors have 64, 96, 128, 160, 192, 224 and 32 bytes
        (Limits(max_size=287), (2, 1, 1, 1, 2)),
        (Limits(max_size=10**6), (7,)),
        (Limits(max_size=288, max_tensors=2), (2, 2, 1, 2)),
    ],
)
def test_counts(limits: Limits, counts: tuple[int, ...]) -> None:
    assert limits.counts(SPECS, 32) == counts


def test_a_tensor_larger_than_a_shard() -> None:
    with pytest.raises(Usage, match=r"t5: 224 bytes do not fit in a shard of 200\nAllow 224 bytes or more"):
        Limits(max_size=200).counts(SPECS, 32)


def test_a_plan_is_whole() -> None:
    plan = plan_shards(LAYOUT, COUNTS)
    assert [len(shard.tensors) for shard in plan.shards] == list(COUNTS)
    assert plan.whole.size == sum(shard.size for shard in plan.shards)
    assert list(plan.shards[0].metadata) == [*META, "split.no", "split.count", "split.tensors.count"]
    for number, shard in enumerate(plan.shards):
        assert shard.metadata["split.no"] == Value(ValueType.UINT16, number)
        assert shard.metadata["split.count"] == Value(ValueType.UINT16, 3)
        assert shard.metadata["split.tensors.count"] == i32(7)
    assert plan_shards(LAYOUT, (7,)).shards == (LAYOUT,)
    with pytest.raises(Usage, match="at most 65535"):
        plan_shards(LAYOUT, [0] * 65536)


# ---- reading ----


@pytest.mark.parametrize("asked", NAMES)
def test_a_set_reads_as_one(tmp_path: Path, asked: str) -> None:
    write_set(tmp_path)
    assert names(tmp_path) == NAMES
    assert contents(tmp_path / asked) == WHOLE
    with open_gguf_set(tmp_path / asked) as model:
        assert model.metadata == META
        assert (model.counts, [path.name for path in model.paths]) == (COUNTS, NAMES)
        assert model.size == sum((tmp_path / name).stat().st_size for name in NAMES)
        assert model.file_of(model.tensors["t4"]).path.name == NAMES[2]


def test_one_file_reads_as_a_set(tmp_path: Path) -> None:
    assert contents(write_one(tmp_path / "m.gguf")) == WHOLE
    merged = lay_out({**META, "split.no": i32(0), "split.count": i32(0), "split.tensors.count": i32(7)}, SPECS)
    with open_gguf_set(write_one(tmp_path / "merged by llama.cpp.gguf", merged)) as model:
        assert model.metadata == META
        assert model.counts == (7,)


def _swap(folder: Path) -> None:
    (folder / NAMES[1]).rename(folder / "x")
    (folder / NAMES[2]).rename(folder / NAMES[1])
    (folder / "x").rename(folder / NAMES[2])


def _truncate(folder: Path) -> None:
    os.truncate(folder / NAMES[2], (folder / NAMES[2]).stat().st_size - 100)


def _cut_header(folder: Path) -> None:
    os.truncate(folder / NAMES[1], 20)


def _other_cut(folder: Path) -> None:
    """A shard of the same model, split otherwise."""
    layout = lay_out({}, [SPECS[0]])
    plan = plan_shards(layout, (1, 0, 0))
    write_one(folder / NAMES[1], plan.shards[1], [])


def _repeated(folder: Path) -> None:
    keys = plan_shards(LAYOUT, COUNTS).shards[1].metadata
    write_one(folder / NAMES[1], lay_out(keys, [SPECS[1]]), [DATA[1]])


def _one_too_many(folder: Path) -> None:
    keys = plan_shards(LAYOUT, COUNTS).shards[1].metadata
    write_one(folder / NAMES[1], lay_out(keys, [TensorSpec("more", (5,), F32)]), [DATA[-1]])


def _no_keys(folder: Path) -> None:
    write_one(folder / NAMES[1], lay_out({}, []), [])


def _impossible(folder: Path) -> None:
    write_one(folder / NAMES[0], lay_out({"split.no": i32(3), "split.count": i32(3)}, []), [])


def _negative(folder: Path) -> None:
    write_one(folder / NAMES[0], lay_out({"split.no": i32(0), "split.count": i32(-1)}, []), [])


def _typed(folder: Path) -> None:
    write_one(folder / NAMES[0], lay_out({"split.no": i32(0), "split.count": string("3")}, []), [])


@pytest.mark.parametrize(
    ("damage", "shard", "match"),
    [
        (lambda folder: (folder / NAMES[1]).unlink(), 1, "missing: 1 of 3"),
        (_swap, 1, "header says shard 3 of 3 .* where shard 2 of 3"),
        (_truncate, 2, "cut short"),
        (_cut_header, 1, "but the file has 20"),
        (_other_cut, 1, "of a model of 1 tensors, where .* of 7"),
        (_repeated, 1, "'t1' is also in m-00001-of-00003.gguf"),
        (_one_too_many, 0, "hold 8 tensors, but their headers say 7"),
        (_no_keys, 1, "header says shard 1 of 1"),
        (_impossible, 0, "shard 3 .* of 3, which is impossible"),
        (_negative, 0, "of -1, which is impossible"),
        (_typed, 0, "has type STRING"),
    ],
)
def test_a_damaged_set_names_the_shard(
    tmp_path: Path, damage: Callable[[Path], object], shard: int, match: str
) -> None:
    write_set(tmp_path)
    damage(tmp_path)
    with pytest.raises(Malformed, match=match) as caught:
        open_gguf_set(tmp_path / NAMES[0])
    assert NAMES[shard] in str(caught.value)


@pytest.mark.parametrize("name", ["model.gguf", "m-00002-of-00003.gguf", "m-00001-of-00004.gguf", "m-00001-of-00003"])
def test_a_renamed_shard_is_named(tmp_path: Path, name: str) -> None:
    write_set(tmp_path)
    (tmp_path / NAMES[0]).rename(tmp_path / name)
    with pytest.raises(Malformed, match="its header says that it is shard 1 of 3, its name does not"):
        open_gguf_set(tmp_path / name)


# ---- writing ----


def test_splitting_and_merging_give_the_same_bytes(tmp_path: Path) -> None:
    source = write_one(tmp_path / "one.gguf", lay_out(META, SPECS, alignment=64))
    seen: list[int] = []
    with open_gguf_set(source) as model:
        done = copy(model, plan_split(model, Limits(max_tensors=2)), tmp_path / "m.gguf", advance=seen.append)
    assert [path.name for path in done.paths] == [f"m-0000{k}-of-00004.gguf" for k in (1, 2, 3, 4)]
    assert sum(seen) == 32 * 21 + 5
    assert contents(done.paths[2]) == WHOLE
    with open_gguf_set(done.paths[0]) as model:
        assert [file.alignment for file in model.files] == [64] * 4
        copy(model, plan_merge(model), tmp_path / "merged.gguf")
    assert (tmp_path / "merged.gguf").read_bytes() == source.read_bytes()


def _refused(*arguments: object) -> int:
    raise OSError(errno.EXDEV, "between file systems")


@pytest.mark.parametrize("kernel", ["copies", "copies some bytes", "refuses", "cannot"])
def test_pieces_smaller_than_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    """Also where the kernel does not copy, or stops in the middle."""
    monkeypatch.setattr("ggufsmith.container.copy.PIECE", 50)
    real = getattr(os, "copy_file_range", _refused)
    if kernel == "copies some bytes":
        monkeypatch.setattr(os, "copy_file_range", lambda a, b, size, *at: real(a, b, min(size, 7), *at), raising=False)
    elif kernel == "refuses":
        monkeypatch.setattr(os, "copy_file_range", _refused, raising=False)
    elif kernel == "cannot":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    with open_gguf_set(write_one(tmp_path / "one.gguf")) as model:
        done = copy(model, plan_split(model, Limits(max_tensors=5, header_alone=True)), tmp_path / "m.gguf")
    assert len(done.paths) == 3
    assert contents(done.paths[0]) == WHOLE


def test_a_model_cut_while_it_is_copied(tmp_path: Path) -> None:
    path = write_one(tmp_path / "one.gguf")
    with open_gguf_set(path) as model:
        plan = plan_split(model, Limits(max_tensors=5, header_alone=True))
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(Malformed, match="too early"):
            copy(model, plan, tmp_path / "m.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["one.gguf"]


def test_nothing_to_do(tmp_path: Path) -> None:
    with open_gguf_set(write_one(tmp_path / "one.gguf")) as model:
        with pytest.raises(Usage, match="nothing to split"):
            plan_split(model, Limits(max_size=10**9))
        with pytest.raises(Usage, match="nothing to merge"):
            plan_merge(model)


def test_a_shard_is_no_output_of_its_own_copy(tmp_path: Path) -> None:
    first = write_set(tmp_path, counts=(2, 2, 3))
    with open_gguf_set(first) as model, pytest.raises(OutputConflict, match="the output is the input"):
        copy(model, plan_shards(LAYOUT, (3, 3, 1)), tmp_path / "m.gguf")
    assert contents(first) == WHOLE


def test_an_incomplete_set_is_never_named(tmp_path: Path) -> None:
    plan = plan_shards(LAYOUT, COUNTS)
    with pytest.raises(Failure, match="last"), SetWriter(tmp_path / "m.gguf", plan) as writer:
        fill(writer, Layout(META, SPECS[:6], 32, b"", plan.whole.offsets[:6], 0), DATA[:6])
        writer.commit()
    assert names(tmp_path) == []


def test_overwriting(tmp_path: Path) -> None:
    write_set(tmp_path)
    with pytest.raises(OutputConflict, match="exists"):
        write_set(tmp_path, OTHER, overwrite=False)
    (tmp_path / NAMES[0]).unlink()
    with pytest.raises(OutputConflict, match="exists"):
        write_set(tmp_path, OTHER, overwrite=False)
    assert contents(write_set(tmp_path, OTHER)) == dict(zip(WHOLE, OTHER, strict=True))
    assert names(tmp_path) == NAMES


def test_one_run_per_set(tmp_path: Path) -> None:
    plan = plan_shards(LAYOUT, COUNTS)
    with SetWriter(tmp_path / "m.gguf", plan) as writer:
        with pytest.raises(OutputConflict, match="another run"):
            write_set(tmp_path)
        fill(writer, plan.whole)
        writer.commit()
    assert names(tmp_path) == NAMES


def test_the_disk_must_hold_the_whole_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard alone would fit."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": LAYOUT.size})())
    with pytest.raises(NoSpace, match=f"needs {plan_shards(LAYOUT, COUNTS).whole.size} bytes"):
        write_set(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", range(6))
def test_an_error_between_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException], old: bool
) -> None:
    """At any of the renames: the old set is back, or nothing is there."""
    if old:
        write_set(tmp_path)
    calls, real = 0, os.replace

    def replace(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise error("injected")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    if not old and at >= 3:  # three names to give, none to take
        write_set(tmp_path, OTHER)
        return
    with pytest.raises((Failure, KeyboardInterrupt)):
        write_set(tmp_path, OTHER)
    monkeypatch.undo()
    assert names(tmp_path) == (NAMES if old else [])
    if old:
        assert contents(tmp_path / NAMES[0]) == WHOLE


@pytest.mark.parametrize("call", ["stat", "replace", "unlink"])
@pytest.mark.parametrize("last", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("at", range(9))
def test_a_system_that_refuses_while_names_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, at: int, last: bool
) -> None:
    """Whichever call it is, the error is its own, and says which file; one of the two sets is whole."""
    write_set(tmp_path)
    calls, real, publishing = 0, getattr(os, call), False

    def refuse(path: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        if str(path).startswith(str(tmp_path / "")) and publishing:
            calls += 1
            if calls == at + 1 or (last and calls > at):
                raise PermissionError(errno.EACCES, "injected", str(path))
        return real(path, *arguments, **options)

    try:
        with SetWriter(tmp_path / "m.gguf", plan_shards(LAYOUT, COUNTS)) as writer:
            fill(writer, writer.plan.whole, OTHER)
            for each in writer.writers:
                each.seal()
                each.finish()
            publishing = True
            monkeypatch.setattr(os, call, refuse)
            try:
                writer._publish()
            finally:
                publishing = False
    except Failure as failure:
        assert "injected" in str(failure) and NAMES[0][:5] in str(failure)
        assert last or contents(tmp_path / NAMES[0]) == WHOLE
    else:
        assert contents(tmp_path / NAMES[0]) == dict(zip(WHOLE, OTHER, strict=True))
    monkeypatch.undo()
    with SetWriter(tmp_path / "m.gguf", plan_shards(LAYOUT, COUNTS)):
        found = contents(tmp_path / NAMES[0])
    assert found in (WHOLE, dict(zip(WHOLE, OTHER, strict=True)))
    assert names(tmp_path) == NAMES


CHILD = """
import os, signal, sys
from pathlib import Path
from test_shards import OTHER, write_set
calls, real = 0, os.replace
def replace(source, target):
    global calls
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    real(source, target)
os.replace = replace
write_set(Path(sys.argv[1]), OTHER)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
@pytest.mark.parametrize("at", range(7))
def test_killed_between_renames(tmp_path: Path, at: int) -> None:
    """Readers see the old set, the new one, or none; the next run starts from the old set and leaves no trace."""
    write_set(tmp_path)
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), str(at)], env=here, timeout=60, check=False)
    assert child.returncode == (-signal.SIGKILL if at < 6 else 0)
    first = tmp_path / NAMES[0]
    if first.exists():
        assert contents(first) == (WHOLE if at < 6 else dict(zip(WHOLE, OTHER, strict=True)))
    else:
        for name in set(names(tmp_path)).intersection(NAMES):
            with pytest.raises(Malformed, match=r"the first is m-00001-of-00003.gguf\n.*run it again"):
                open_gguf_set(tmp_path / name)
    with SetWriter(tmp_path / "m.gguf", plan_shards(LAYOUT, COUNTS)):
        assert contents(first) == (WHOLE if at < 6 else dict(zip(WHOLE, OTHER, strict=True)))
    write_set(tmp_path)
    assert names(tmp_path) == NAMES
    assert contents(first) == WHOLE


def test_a_set_replaced_completely_but_for_the_cleaning(tmp_path: Path) -> None:
    """Killed after the new first shard had its name: the new set counts."""
    write_set(tmp_path, OTHER)
    for name in NAMES:
        (tmp_path / f".{name}.replaced").write_bytes(b"old")
    with SetWriter(tmp_path / "m.gguf", plan_shards(LAYOUT, COUNTS)):
        assert contents(tmp_path / NAMES[0]) == dict(zip(WHOLE, OTHER, strict=True))
    assert names(tmp_path) == NAMES
