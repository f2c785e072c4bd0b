"""The fixture vocabularies are the same wherever and whenever they are made."""

import subprocess
import sys
from pathlib import Path

import pytest

import vocabularies

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", vocabularies.KINDS)
def test_another_process_writes_the_same_bytes(kind: str, tmp_path: Path) -> None:
    size = vocabularies.write(kind, tmp_path / "a")
    command = [sys.executable, str(ROOT / "fixtures" / "vocabularies.py"), kind, str(tmp_path / "b")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
    assert int(run.stdout) == size
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_corpus_is_fixed() -> None:
    lines = vocabularies.corpus(3)
    assert lines == vocabularies.corpus(3)
    assert len(vocabularies.corpus()) == 1500
