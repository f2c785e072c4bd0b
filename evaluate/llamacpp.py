"""The second engine: finished files in llama.cpp, as users run them, through llama-cpp-python.

Activations are quantized there, caches are of 16 bits, and the CPU's or GPU's own kernels run, so the divergence is
that of what a user meets, and includes what the engine itself adds: both sides run in it. How fast a prompt is read and
an answer is written is measured in the way of llama.cpp's tools/llama-bench.
"""

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Unsupported
from ggufsmith.evaluate.compared import score_logits
from ggufsmith.evaluate.judged import TokenSpeed
from ggufsmith.evaluate.token_scores import TokenScores, scored_positions

MICRO = 512  # tokens that llama.cpp computes at once
ANSWER = 64  # tokens of an answer whose speed is measured
REPEATS = 3  # of each measurement, after one that is not counted
ENOUGH = 20.0  # seconds after which a measurement is not repeated


def run_files(
    source: Path,
    files: Sequence[Path],
    tokens: NDArray[np.int32],
    *,
    cpu: bool = False,
    threads: int,
    advance: Callable[[int], None] = lambda windows: None,
) -> tuple[list[TokenScores], list[TokenSpeed]]:
    """Scores of the source, then of each file, and the speed of each file.

    The source runs beside every file, so that no logits are stored: memory is that of two models. tokens: (windows,
    context), of the source's vocabulary. cpu: leave GPUs alone. advance: told of each window that a file has run.
    Failure with llama.cpp's own words where it cannot open or run a file.
    """
    context = tokens.shape[1]
    found: list[TokenScores] = []
    speeds: list[TokenSpeed] = []
    for number, file in enumerate(files):
        with _opened(source, context, cpu, threads) as base, _opened(file, context, cpu, threads) as model:
            if base.vocabulary != model.vocabulary:
                raise Unsupported(
                    f"the file has {model.vocabulary} tokens, and its source {base.vocabulary}",
                    where=file,
                    fix="Compare files with the model that they were made from.",
                )
            both = []
            for window in tokens:
                logits, own = base.logits(window), model.logits(window)
                following = window[scored_positions(context).start + 1 :]
                both.append((score_logits(logits, logits, following), score_logits(logits, own, following)))
                advance(1)
            if not number:
                found.append(_stacked([each for each, _ in both]))
            found.append(_stacked([each for _, each in both]))
            speeds.append(model.speed(tokens[0]))
    return found, speeds


def _stacked(windows: Sequence[tuple[NDArray[Any], ...]]) -> TokenScores:
    return TokenScores(*(np.stack(each) for each in zip(*windows, strict=True)))


class _Model:
    """A model that llama.cpp has loaded."""

    def __init__(self, api: Any, model: Any, state: Any, where: Path, said: list[bytes]) -> None:
        self.api, self.state, self.where, self.said = api, state, where, said
        self.vocabulary: int = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def logits(self, window: NDArray[np.int32]) -> NDArray[np.float32]:
        """At the scored positions of a window, (positions, vocabulary)."""
        positions = scored_positions(len(window))
        self._clear()
        self._decode(window, 0, range(len(window))[positions])
        count = positions.stop - positions.start
        pointer = self.api.llama_get_logits(self.state)
        return np.array(np.ctypeslib.as_array(pointer, (count, self.vocabulary)), np.float32)

    def speed(self, window: NDArray[np.int32]) -> TokenSpeed:
        """Tokens per second: reading this prompt, then writing an answer from an empty context. Medians."""
        answer = window[:ANSWER]
        return TokenSpeed(
            len(window) / self._seconds([window]), len(answer) / self._seconds(np.split(answer, len(answer)))
        )

    def _seconds(self, pieces: Sequence[NDArray[np.int32]]) -> float:
        """That these pieces take, one after the other. The first time does not count, if there is time for a second."""
        found: list[float] = []
        while len(found) < 1 + REPEATS and sum(found) < ENOUGH:
            found.append(self._timed(pieces))
        return float(np.median(found[1:] or found))

    def _timed(self, pieces: Sequence[NDArray[np.int32]]) -> float:
        self._clear()
        start, place = time.perf_counter(), 0
        for piece in pieces:
            self._decode(piece, place, [len(piece) - 1])
            place += len(piece)
            self.api.llama_synchronize(self.state)
        return time.perf_counter() - start

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.state), True)

    def _decode(self, tokens: NDArray[np.int32], place: int, wanted: Sequence[int]) -> None:
        """Run tokens that stand at `place` and after. wanted: those whose logits are kept."""
        batch = self.api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for k, token in enumerate(tokens.tolist()):
                batch.token[k], batch.pos[k], batch.logits[k] = token, place + k, k in wanted
                batch.n_seq_id[k], batch.seq_id[k][0] = 1, 0
            code = self.api.llama_decode(self.state, batch)
        finally:
            self.api.llama_batch_free(batch)
        if code:
            raise Failure(
                f"llama.cpp could not run the file (code {code})", where=self.where, also=_last_words(self.said)
            )


@contextmanager
def _opened(path: Path, context: int, cpu: bool, threads: int) -> Iterator[_Model]:
    import llama_cpp

    api = llama_cpp.llama_cpp
    with ExitStack() as stack:
        said = stack.enter_context(_logged(api))
        wanted = api.llama_model_default_params()
        wanted.n_gpu_layers = 0 if cpu else wanted.n_gpu_layers
        model = api.llama_model_load_from_file(str(path).encode(), wanted)
        if not model:
            raise Failure("llama.cpp could not open the file", where=path, also=_last_words(said))
        stack.callback(api.llama_model_free, model)
        limits = api.llama_context_default_params()
        limits.n_ctx = limits.n_batch = context
        limits.n_ubatch = min(MICRO, context)
        limits.n_threads = limits.n_threads_batch = threads
        state = api.llama_init_from_model(model, limits)
        if not state:
            raise Failure("llama.cpp could not make a context for the file", where=path, also=_last_words(said))
        stack.callback(api.llama_free, state)
        yield _Model(api, model, state, path, said)


@contextmanager
def _logged(api: Any) -> Iterator[list[bytes]]:
    """What llama.cpp says meanwhile, instead of printing it. Who heard it before hears it again afterwards."""
    said: list[bytes] = []

    hear = api.llama_log_callback(lambda level, text, data: said.append(text))
    before, argument = api.llama_log_callback(), ctypes.c_void_p()
    api.llama_log_get(ctypes.byref(before), ctypes.byref(argument))
    api.llama_log_set(hear, ctypes.c_void_p())
    try:
        yield said
    finally:
        api.llama_log_set(before, argument)


def _last_words(said: Sequence[bytes]) -> list[str]:
    text = b"".join(said).decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines() if "error" in line.lower() or "failed" in line.lower()][-3:]
