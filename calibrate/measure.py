"""Measures what each type would cost the predictions of a model: a table for budgets (see `quantize.sensitivity`).

The model runs forward and backward over the text. When a block is done, some rows of its matrices are quantized with
every type that could be chosen, by the very quantizer that would write the file, and what they lose is weighed by the
Fisher information of the outputs. Then the block is forgotten.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ggufsmith.calibrate.auto import is_weighted
from ggufsmith.calibrate.encoder import CalibratedEncoder
from ggufsmith.calibrate.finite import FIX
from ggufsmith.calibrate.gram import Inputs
from ggufsmith.calibrate.head import inputs_of
from ggufsmith.calibrate.ready import Readied
from ggufsmith.calibrate.refine import Effort
from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import TensorSpec, rows_of
from ggufsmith.container.parallel import parallel_for
from ggufsmith.evaluate.head import EMBEDDING, head_among
from ggufsmith.pipeline.encoder import Encoder, RowRange
from ggufsmith.pipeline.parallel import available_cores
from ggufsmith.quantize.budget import candidates
from ggufsmith.quantize.encoder import GGML
from ggufsmith.quantize.measured import Progress, silently
from ggufsmith.quantize.recipes.assign import Stored
from ggufsmith.quantize.recipes.rules import kept
from ggufsmith.quantize.sensitivity import Sensitivity, TensorSensitivity

if TYPE_CHECKING:
    from ggufsmith.calibrate.fisher import Fisher
    from ggufsmith.evaluate.backward import EmbeddingFisher, Finished, HeadFisher

F32 = BY_NAME["F32"]
WINDOWS = 32  # of the text that are run backward at most
PART, LEAST = 16, 48  # of the rows of a tensor one in so many is measured, but so many at least
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of one matrix that are measured. place: how many rows come before them, of how many in the tensor.

    weights: float32 (n, width). shares: float64 (n,), how much each row counts. metric: float32 (width, width), or its
    diagonal (width,).
    """

    place: RowRange
    weights: NDArray[np.float32]
    shares: NDArray[np.float64]
    metric: NDArray[np.float32]


@dataclass
class Measuring:
    """The losses so far, by tensor and type.

    effort: None for ggml's bytes. tensors: all that may get a type, by name.
    """

    tensors: Mapping[str, Stored]
    effort: Effort | None
    threads: int
    losses: dict[str, dict[str, float]] = field(default_factory=dict)

    def measure(
        self, samples: Mapping[str, Sequence[Sample]], encoder: Encoder, importance: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Add the losses of these tensors with every type that they could get.

        importance: (width,) or (matrices, width); a tensor without it is quantized without. Malformed: a loss that is
        not finite.
        """
        tasks = [
            (name, sample, format)
            for name, several in samples.items()
            for format in modern(self.tensors[name], name in importance)
            for sample in several
        ]
        encoder.load([(format, F32, name in importance) for name, _, format in tasks])
        encoder.load([(F32, format, False) for _, _, format in tasks])
        found: dict[tuple[str, str, int], float] = {}

        def work(task: tuple[str, Sample, Format]) -> None:
            name, sample, format = task
            found[name, format.name, sample.place.first] = loss_of(sample, format, encoder, importance.get(name))

        parallel_for(lambda stop: work, tasks, self.threads)
        if wrong := [key for key, loss in sorted(found.items()) if not math.isfinite(loss)]:
            name, type, _ = wrong[0]
            raise Malformed(
                f"what {type} would cost {name} is NaN, infinite or too large",
                fix=FIX,
            )
        for (name, type, _), loss in sorted(found.items()):
            known = self.losses.setdefault(name, {})
            known[type] = known.get(type, 0.0) + loss


def modern(stored: Stored, importance: bool) -> Iterator[Format]:
    """The types that a tensor could get: of those that fit its rows, without older ones of small blocks where blocks
    of 256 fit, whose types of the same size are better.
    """
    for format in candidates(stored, importance):
        if format is not stored.format and (stored.shape[-1] % 256 or format.weights == 256 or format.name == "Q8_0"):
            yield format


def loss_of(sample: Sample, format: Format, encoder: Encoder, importance: NDArray[np.float32] | None) -> float:
    """Nats per token that these rows stand for."""
    import torch

    weights = sample.weights
    data = np.empty((len(weights), format.nbytes((weights.shape[1],))), np.uint8)
    encoder.encode(format, weights, data, source=F32, importance=importance, place=sample.place)
    error = np.empty_like(weights)
    encoder.decode(format, data, error, place=sample.place)
    np.subtract(weights, error, out=error)
    if sample.metric.ndim == 1:
        each = np.square(error) @ sample.metric.astype(np.float64)
    else:
        changed = torch.from_numpy(error) @ torch.from_numpy(sample.metric)
        each = (changed.numpy().astype(np.float64) * error).sum(axis=1)
    return float(0.5 * np.maximum(each, 0) @ sample.shares)


def measure_sensitivity(
    ready: Readied, effort: Effort | None, *, threads: int | None = None, progress: Progress = silently
) -> Sensitivity:
    """The table of a model that is ready to run.

    effort: of the quantizer; None for ggml's bytes. progress: shows how many weights the windows went through.
    Raises what `run_backward` raises; Malformed if activations or gradients are not finite.
    """
    import torch

    from ggufsmith.calibrate.fisher import FisherCollector
    from ggufsmith.evaluate.backward import backward_work, run_backward

    threads = threads or available_cores()
    source, skeleton = ready.model.source, ready.skeleton
    architecture = skeleton.plan.architecture.name
    tensors = {
        name: Stored(name, tensor.shape, tensor.held)
        for name, tensor in source.tensors.items()
        if kept(name, tensor.shape, architecture) is None
    }
    tokens = ready.windows.tokens
    tokens = tokens[np.unique(np.linspace(0, len(tokens) - 1, min(WINDOWS, len(tokens))).round().astype(np.int64))]
    measuring = Measuring(tensors, effort, threads)
    collector = FisherCollector({name: each.shape for name, each in tensors.items()}, tokens.size, threads)
    weighted = {
        name for name, each in tensors.items() if is_weighted(TensorSpec(name, each.shape, each.format), architecture)
    }

    def finished(block: "Finished") -> None:
        names = [each.name for each in block.outputs if each.name in tensors]
        inputs, fisher = collector.take(names)
        of_block(measuring, inputs, fisher, block.rows, weighted)

    with progress(backward_work(skeleton)) as advance:
        ends = run_backward(
            skeleton,
            source,
            tokens,
            observe=collector,
            finished=finished,
            device=ready.device,
            threads=threads,
            progress=advance,
        )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        of_ends(measuring, ready, *ends)
    finally:
        torch.set_num_threads(before)
    found = {
        name: TensorSensitivity(tensors[name].shape, measuring.losses[name])
        for name in tensors
        if name in measuring.losses
    }
    return Sensitivity(found, effort or "none", int(tokens.size), ready.windows.digest)


def of_block(
    measuring: Measuring,
    inputs: "Mapping[str, Inputs]",
    fisher: "Mapping[str, Sequence[Fisher | None]]",
    rows: Mapping[str, NDArray[np.float32]],
    weighted: Iterable[str],
) -> None:
    """Measure the tensors of a block. rows: of each, (rows, width). weighted: the names of those with importance."""
    samples = {name: list(samples_of(name, each, rows[name])) for name, each in fisher.items()}
    wanted = {name: inputs[name] for name in samples if name in set(weighted)}
    if measuring.effort is None:
        diagonals = {name: np.stack([h.diagonal() for h in each.h]) for name, each in wanted.items()}
        importance = {name: each if len(each) > 1 else each[0] for name, each in diagonals.items()}
        measuring.measure(samples, GGML, importance)
        return
    encoder = CalibratedEncoder(measuring.effort, "")
    encoder.shelf.put(wanted, measuring.threads)
    measuring.measure(samples, encoder, encoder.shelf.importance)


def samples_of(name: str, fisher: "Sequence[Fisher | None]", rows: NDArray[np.float32]) -> Iterator[Sample]:
    """Rows of every matrix of a tensor that a token reached."""
    each = len(rows) // len(fisher)
    for k, known in enumerate(fisher):
        if known is not None:
            picked, shares = sample_rows(known.outputs, sampled(each, len(fisher)))
            weights = np.ascontiguousarray(rows[k * each + picked])
            yield Sample(RowRange(name, name, k * each, len(rows)), weights, shares, known.inputs)


def of_ends(measuring: Measuring, ready: Readied, head: "HeadFisher", embedding: "EmbeddingFisher") -> None:
    """Measure the matrix that makes the logits, and the embedding; if they are one, the sum of both."""
    import torch

    from ggufsmith.calibrate.fisher import check_finite
    from ggufsmith.evaluate.variants import pick_rows

    source = ready.model.source
    name = head_among(source.tensors)
    check_finite(name, head.weights, head.outputs)
    check_finite(EMBEDDING, embedding.outputs)
    root = torch.from_numpy(head.inputs) * torch.from_numpy(np.sqrt(head.weights / len(head.weights))).float()[:, None]
    # A row that the text lacks counts as if it had been seen once.
    ends = (
        (name, head.outputs, (root.T @ root).numpy()),
        (EMBEDDING, embedding.counts.astype(np.float64) + 1, embedding.outputs.astype(np.float32)),
    )
    encoder, importance = encoder_of_head(measuring, name, head)
    for tensor, counts, metric in ends:
        if tensor not in measuring.tensors:
            continue
        rows = rows_of(measuring.tensors[tensor].shape)[0]
        picked, shares = sample_rows(counts, sampled(rows))
        weights = pick_rows(source, tensor, picked, measuring.threads)
        sample = Sample(RowRange(tensor, tensor, 0, rows), weights, shares, metric)
        measuring.measure({tensor: [sample]}, encoder, importance)


def encoder_of_head(
    measuring: Measuring, name: str, head: "HeadFisher"
) -> tuple[Encoder, Mapping[str, NDArray[np.float32]]]:
    """What quantizes the matrix that makes the logits, and its importance."""
    import torch

    if measuring.effort is None or name not in measuring.tensors:
        return GGML, {}
    inputs = torch.from_numpy(head.inputs)
    h = (inputs.T @ inputs / len(inputs)).numpy()
    encoder = CalibratedEncoder(measuring.effort, "")
    encoder.shelf.put({name: inputs_of(name, Inputs((h,), (len(inputs),)))}, measuring.threads)
    return encoder, encoder.shelf.importance


def sample_rows(importance: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Some rows for all: which, ascending, and how much each counts; the sum is 1, or 0 if nothing is important.

    Half of them are the most important ones. The others are spread evenly over the rest, and stand for all of it.
    """
    total = importance.sum()
    if not total > 0:
        return np.arange(min(count, len(importance))), np.zeros(min(count, len(importance)))
    if count >= len(importance):
        return np.arange(len(importance)), importance / total
    order = np.argsort(-importance, kind="stable")
    top, rest = order[: count // 2], np.sort(order[count // 2 :])
    k = np.arange(count - len(top))
    others = rest[np.floor((k + np.modf(k * GOLDEN)[0]) * len(rest) / len(k)).astype(np.int64)]
    seen = importance[others].sum()
    share = importance[others] * (importance[rest].sum() / seen) if seen > 0 else np.zeros(len(others))
    rows = np.concatenate([top, others])
    ascending = np.argsort(rows, kind="stable")
    return rows[ascending], (np.concatenate([importance[top], share]) / total)[ascending]


def sampled(rows: int, matrices: int = 1) -> int:
    """How many rows of each of so many matrices are measured."""
    return min(rows, max(-(-rows // PART), -(-LEAST // matrices)))
