"""Files of machine code: which are used, what is made of those that cannot be, and the level that they are for."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apart import environment

from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.quantize import cpu, machine_code
from ggufsmith.quantize.workers import Crew, compiled_apart

NAMES = ["floats.copied", "floats.narrowed"]
USE = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import cpu, machine_code, rows
machine_code.PACKAGED = Path(sys.argv[1])
F32, F16 = BY_NAME["F32"], BY_NAME["F16"]
seconds = rows.prepare([(F16, F32, False), (F32, F32, False)])
x = np.random.default_rng(1).standard_normal((3, 257)).astype(np.float32)
out = np.empty((3, 514), np.uint8)
rows.encode(F16, x, out)
print(json.dumps({
    "compiled": seconds > 0,
    "numba": "numba" in sys.modules,
    "notes": machine_code.new_remarks() + machine_code.new_remarks(),
    "bytes": hashlib.sha256(out).hexdigest(),
    "level": cpu.level().name,
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine code of two kernels, as a wheel carries it."""
    folder = tmp_path_factory.mktemp("package")
    place = folder / cpu.level().name
    place.mkdir()
    with compiled_apart(NAMES, place) as files:
        assert {file.stem for file in files} == set(NAMES)
    return folder


def used(package: Path, cache: Path, **more: str) -> dict[str, Any]:
    """What a process with this package and this cache finds."""
    done = subprocess.run(
        [sys.executable, "-c", USE, str(package)],
        env={**os.environ, **environment(cache), **more},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    """A package that a test may damage."""
    return Path(shutil.copytree(package, tmp_path / "package"))


def test_code_of_the_package_is_loaded_without_numba(package: Path, tmp_path: Path) -> None:
    found = used(package, tmp_path)
    assert (found["compiled"], found["numba"], found["notes"]) == (False, False, [])
    assert not list(tmp_path.rglob("*.o"))


def test_code_of_the_cache_is_loaded_without_numba(tmp_path: Path) -> None:
    nowhere = tmp_path / "no package"
    first, second = used(nowhere, tmp_path), used(nowhere, tmp_path)
    assert first["compiled"] and not first["notes"], "a checkout has nothing to say"
    assert (second["compiled"], second["numba"], second["notes"]) == (False, False, [])


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def of_another_version(file: Path) -> None:
    data = file.read_bytes()
    at = len(machine_code.MAGIC)
    file.write_bytes(data[:at] + hashlib.sha256(b"another").digest() + data[at + machine_code.DIGEST :])


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (truncated, "is damaged"),
        (flipped, "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(b"\x7fELF" * 100), "is damaged"),
        (of_another_version, "is of another version"),
        (Path.unlink, "is missing"),
        (a_folder, "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_compiled_and_said_once(
    damage: Any, fault: str, package: Path, copied: Path, tmp_path: Path
) -> None:
    good = used(package, tmp_path / "unused")
    for name in NAMES:
        damage(copied / cpu.level().name / f"{name}.o")
    found = used(copied, tmp_path)
    assert found["compiled"] and found["bytes"] == good["bytes"]
    (note,) = found["notes"]
    assert fault in note and str(copied) in note
    again = used(copied, tmp_path)
    assert not again["compiled"] and not again["notes"] and again["bytes"] == good["bytes"]


def test_a_level_that_the_package_lacks(package: Path, tmp_path: Path) -> None:
    found = used(package, tmp_path, GGUFSMITH_CPU="native")
    assert found["compiled"] and found["bytes"] == used(package, tmp_path)["bytes"] and found["level"] == "native"
    assert found["notes"] == ["this installation has no machine code for native, so that kernels are compiled"]


def test_a_cache_that_cannot_be_written(package: Path, copied: Path, tmp_path: Path) -> None:
    """Two notes, of different things; and nothing is asked of the cache where the package has all."""
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    good = used(package, blocked)
    assert not good["compiled"] and not good["notes"]
    (copied / cpu.level().name / f"{NAMES[1]}.o").unlink()
    found = used(copied, blocked)
    assert found["compiled"] and found["bytes"] == good["bytes"]
    assert len(found["notes"]) == 2 and "no cache folder can be written" in found["notes"][1]


@pytest.mark.parametrize("interpreter", ["", "no such program", os.devnull])
def test_without_other_processes_kernels_are_compiled_here(interpreter: str, package: Path, tmp_path: Path) -> None:
    """Python may be embedded in another program, or forbidden to start one."""
    script = USE.replace(
        "import hashlib, json, sys\n", f"import hashlib, json, sys\nsys.executable = {interpreter!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "no package")],
        env={**os.environ, **environment(tmp_path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["compiled"] and found["numba"] and found["bytes"] == used(package, tmp_path)["bytes"]


def test_processes_end_with_what_they_are_for(tmp_path: Path) -> None:
    """However it ends: here at once, as after Ctrl-C."""
    crew = Crew(NAMES, tmp_path)
    crew.dismiss()
    assert len(crew.processes) == min(2, available_cores())
    assert all(process.poll() is not None for process in crew.processes)
    assert not list(crew.files())


@pytest.mark.parametrize(
    ("system", "variable", "without"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_the_folder_for_caches_is_the_system_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, variable: str | None, without: str
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert machine_code.user_cache() == tmp_path / without
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / name))
    assert machine_code.user_cache() == tmp_path / (variable or without)


@pytest.mark.parametrize("interpreter", [None, ""])
def test_without_an_interpreter_nothing_is_compiled_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str | None
) -> None:
    """Programs with Python inside them may not say where one is."""
    monkeypatch.setattr(sys, "executable", interpreter)
    with compiled_apart(NAMES, tmp_path) as files:
        assert not list(files)


# ---- levels ----


@pytest.mark.parametrize(
    ("arch", "lacks", "name"),
    [
        ("x86_64", "", "x86-64-v4"),
        ("x86_64", "avx512vl", "x86-64-v3"),
        ("x86_64", "avx512f fma", "x86-64-v2"),
        ("x86_64", "bmi2", "x86-64-v2"),
        ("x86_64", "sse4.2", None),
        ("x86_64", "popcnt", None),
        ("aarch64", "neon", "arm64"),
        ("riscv64", "", None),
    ],
)
def test_the_level_is_chosen_by_features(arch: str, lacks: str, name: str | None) -> None:
    found = cpu.best(arch, cpu.V4 - set(lacks.split()))
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("pentium", "'pentium' does not name a CPU that ggufsmith knows"),
        ("arm64" if cpu.host_arch() == "x86_64" else "x86-64-v2", "this CPU cannot run machine code for"),
    ],
)
def test_a_level_that_cannot_be_had(wanted: str, message: str, tmp_path: Path) -> None:
    """Refused before anything is compiled or run."""
    code = "from ggufsmith.quantize import rows; from ggufsmith.container.formats import BY_NAME as F\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}rows.warm_up(F['F16'])"],
        env={**os.environ, **environment(tmp_path), cpu.VARIABLE: wanted},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode != 0 and f"Unsupported: {cpu.VARIABLE}: {message}" in done.stderr
    assert not list(tmp_path.rglob("*.o"))
