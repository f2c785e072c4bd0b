"""Names of outputs that a system does not take, or takes for something else."""

from pathlib import Path

import pytest

from ggufsmith.container import disk, output_names
from ggufsmith.container.errors import Usage
from ggufsmith.container.folder import new_folder
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.output_names import ADDED, check_name
from ggufsmith.container.replace import check_new
from ggufsmith.container.writer import Writer

LAYOUT = lay_out({}, [TensorSpec("a", (4,), BY_NAME["F32"])])
BAD = {
    "con": "keeps this name for a device",
    "NUL.gguf": "keeps this name for a device",
    "com1.tar.gguf": "keeps this name for a device",
    "LPT³.gguf": "keeps this name for a device",
    "model:Q4_K_M.gguf": "':' cannot be part of a name",
    "what?.gguf": "'[?]' cannot be part of a name",
    "model.gguf.": "end in a point or a space",
    "model ": "end in a point or a space",
}


@pytest.mark.parametrize(("name", "said"), BAD.items())
def test_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str) -> None:
    check_name(tmp_path / name)
    monkeypatch.setattr(disk, "WINDOWS", True)
    with pytest.raises(Usage, match=said):
        check_name(tmp_path / name)


@pytest.mark.parametrize("name", ["console.gguf", "COM.gguf", "com10.gguf", "a.nul", "Modell-größer.gguf"])
def test_ordinary_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(disk, "WINDOWS", True)
    check_name(tmp_path / name)


def test_the_longest_name(tmp_path: Path) -> None:
    name = "m" * (255 - ADDED - 5) + ".gguf"
    with Writer(tmp_path / name, LAYOUT):
        assert [len(file.name) for file in tmp_path.iterdir()] == [255]
    for refuse, fix in (
        (lambda path: Writer(path, LAYOUT).__enter__(), "for the output"),
        (lambda path: check_new(path, overwrite=True), "another name for the file"),
        (lambda path: new_folder(path, 0).__enter__(), "--outdir"),
    ):
        with pytest.raises(Usage, match=f"longer than {255 - ADDED} bytes") as caught:
            refuse(tmp_path / f"m{name}")
        assert fix in str(caught.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_bytes_count_and_not_characters(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="longer than"):
        check_name(tmp_path / ("é" * 200))


def test_a_system_that_does_not_say_how_long_names_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(output_names.os, "pathconf", raising=False)
    with pytest.raises(Usage, match=f"longer than {255 - ADDED} bytes"):
        check_name(tmp_path / ("m" * 250))
