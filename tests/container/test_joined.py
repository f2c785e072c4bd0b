"""GGUF files joined by `cat`: named, with a command that leads to the model."""

from pathlib import Path

import pytest
from test_shards import LAYOUT, fill, write_set

from ggufsmith.container.errors import Malformed
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.container.writer import Writer


def joined(folder: Path, *parts: Path, name: str = "joined.gguf") -> Path:
    path = folder / name
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1)])
@pytest.mark.parametrize("counts", [(3, 0, 4), (0, 3, 4), (7, 0, 0)])
def test_shards_joined_in_any_order(tmp_path: Path, order: tuple[int, ...], counts: tuple[int, ...]) -> None:
    """Also where the first has no tensors, and ends with its header."""
    write_set(tmp_path, counts=counts)
    shards = sorted(tmp_path.glob("m-*.gguf"))
    path = joined(tmp_path, *(shards[k] for k in order))
    for opened in (open_gguf, open_gguf_set):
        with pytest.raises(Malformed, match="another GGUF file begins at byte"):
            opened(path)


def test_a_joined_file_under_the_name_of_the_first_shard(tmp_path: Path) -> None:
    """It used to be taken for that shard, once the others were beside it."""
    write_set(tmp_path)
    shards = sorted(tmp_path.glob("m-*.gguf"))
    joined(tmp_path, *shards, name="whole")
    (tmp_path / "whole").replace(shards[0])
    with pytest.raises(Malformed, match=r"(?s)another GGUF file begins.*NAME-00001-of-00003\.gguf"):
        open_gguf_set(shards[0])


def test_two_models_in_one_file(tmp_path: Path) -> None:
    with Writer(tmp_path / "one.gguf", LAYOUT, sync=False) as writer:
        fill(writer, LAYOUT)
        writer.commit()
    path = joined(tmp_path, tmp_path / "one.gguf", tmp_path / "one.gguf")
    with pytest.raises(Malformed, match="each one separately"):
        open_gguf(path)
    with path.open("r+b") as file:
        file.truncate((tmp_path / "one.gguf").stat().st_size + 3)
    open_gguf(path).close()
