"""What goes from block to block: the hidden states of all windows, in memory or, if they are many, in a mapped file."""

import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import NoSpace

States = NDArray[np.float32]


class HiddenStates:
    """The hidden states of each batch of windows, in the shape in which the model gives them to its blocks.

    For most that is (windows, context, width). Gemma 3n has four streams, (4, windows, context, width), and others have
    them elsewhere. numbers: float32, those of all batches one behind the other. shapes: of each batch.
    """

    def __init__(self, numbers: States, shapes: Sequence[tuple[int, ...]]) -> None:
        self.numbers = numbers
        self.shapes = tuple(shapes)
        self._ends = np.cumsum([0, *map(math.prod, shapes)]).tolist()

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, batch: int) -> States:
        """Those of one batch; a view, so that they can be overwritten."""
        return self.numbers[self._ends[batch] : self._ends[batch + 1]].reshape(self.shapes[batch])

    def __iter__(self) -> Iterator[States]:
        return map(self.__getitem__, range(len(self)))

    def like(self, numbers: States) -> "HiddenStates":
        """Others of the same shapes."""
        return HiddenStates(numbers, self.shapes)

    def after(self, shape: tuple[int, ...]) -> States:
        """Room of this shape at the beginning of what these take up."""
        return self.numbers[: math.prod(shape)].reshape(shape)


@contextmanager
def room(shape: tuple[int, ...], memory: int) -> Iterator[Any]:
    """Memory for float32 numbers; a mapped temporary file if it is more than `memory` bytes. NoSpace without room."""
    size = 4 * math.prod(shape)
    if size <= memory:
        yield np.empty(shape, np.float32)
        return
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if size > free:  # a mapped file that cannot grow ends the process
        raise NoSpace(
            f"the hidden states of the text need {size} bytes, but only {free} are free",
            where=tempfile.gettempdir(),
            fix="Run the model on fewer windows, or set TMPDIR to a folder on another disk.",
        )
    with tempfile.TemporaryDirectory(prefix="ggufsmith-", ignore_cleanup_errors=True) as folder:
        yield np.memmap(Path(folder) / "hidden", np.float32, "w+", shape=shape)
