"""What a run keeps for every chunk: next to nothing, whatever is found in it and however many outputs there are."""

import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggufsmith.container import journal
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.shards import plan_shards
from ggufsmith.pipeline import stream
from ggufsmith.pipeline.outputs import OutputFile, write_outputs
from ggufsmith.pipeline.stream import Scratch
from ggufsmith.quantize.encoder import GGML

WIDTH = 256
Q4_0 = BY_NAME["Q4_0"]


@dataclass(frozen=True)
class Rows:
    """Rows of one block each, in the type that they keep."""

    name: str
    shape: tuple[int, ...]
    held: Format = Q4_0
    granule: int = 1
    origin: str = "here"
    sources: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.name, self.shape)

    def rows(self, start: int, stop: int, scratch: Scratch) -> Any:
        return np.zeros((stop - start, self.held.nbytes((WIDTH,))), np.uint8)


def peak(folder: Path, chunks: int, outputs: int) -> int:
    """The most bytes that a run with so many chunks takes."""
    folder.mkdir()
    tensors = [Rows(f"t{k}", (chunks // 4, WIDTH)) for k in range(4)]
    layout = lay_out({}, [TensorSpec(tensor.name, tensor.shape, Q4_0) for tensor in tensors])
    files = [OutputFile(plan_shards(layout, (4,)), folder / f"{k}.gguf", "Q4_0") for k in range(outputs)]
    tracemalloc.start()
    try:
        write_outputs(tensors, files, encoder=GGML, inputs=[], threads=2, sync=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("outputs", [1, 4])
def test_kept_for_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: int) -> None:
    monkeypatch.setattr(stream, "CHUNK", WIDTH)
    monkeypatch.setattr(journal, "TOGETHER", 1 << 16)  # as many records at once as of chunks of the usual size
    few, many = 4000, 20000
    peak(tmp_path / "first", 400, outputs)  # what is loaded and kept once
    grown = peak(tmp_path / "many", many, outputs) - peak(tmp_path / "few", few, outputs)
    assert grown / (many - few) < 30 * outputs + 70, "bytes for each chunk"
