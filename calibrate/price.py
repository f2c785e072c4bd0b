"""What running its models adds to the time of a job, for a dry run: `imatrix = "auto"`, `calibrate` and `quality`.

Counted are the products of matrices while the models run, and the weights that are searched for under a Hessian. A
short measurement on this machine says how long they take; on the CPU, of a block as wide as the model's with all that
it computes beside, which in small models is the larger part. Texts are not tokenized for it: this is an estimate.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ggufsmith.calibrate.auto import is_weighted
from ggufsmith.calibrate.hessian import prepare
from ggufsmith.calibrate.ready import documents_of
from ggufsmith.calibrate.refine import BLOCK, Effort, refine
from ggufsmith.calibrate.run import MEASURED, effort_of, reading_of
from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.parallel import parallel_for
from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.passes import JobPass
from ggufsmith.evaluate.head import head_among
from ggufsmith.evaluate.needed import find_device
from ggufsmith.evaluate.texts import TextDocument, shipped
from ggufsmith.pipeline.request import AUTO, TextOptions
from ggufsmith.quantize.fields import is_refinable

LETTERS = 4  # of a token, as most vocabularies have it
BACKWARD = 4  # a forward pass, the same again block by block, and a backward pass, which is twice as long
SIDE = 1024  # of the matrices that are measured, at most
HEADS = 4  # and heads of attention
EACH = 0.3  # seconds that products are measured for
CONTEXT = TextOptions().context


@dataclass(frozen=True)
class ModelRuns:
    """products: multiplications of two numbers and the addition of what they give. device: where they are done.

    refined: (type, effort) -> weights. width: of the hidden states.
    """

    products: float
    refined: Mapping[tuple[str, Effort], int]
    device: str | None
    width: int = SIDE


def runs_of(model: JobModel, planned: JobPass) -> ModelRuns:
    """How often, and over how much text, a model of a job is run, and what is searched for meanwhile."""
    make, made = model.request.make, planned.made
    outputs = [output for each, output in zip(planned.wanted, made.outputs, strict=True) if not each.projector]
    specs = outputs[0].shards.whole.tensors if outputs else []
    share = _active(made.info.metadata, made.info.architecture)
    last = head_among([spec.name for spec in specs])
    shapes = {spec.name: spec.shape for spec in specs if is_weighted(spec, made.info.architecture, last)}
    block = sum(math.prod(shape) * (share if len(shape) > 2 else 1) for name, shape in shapes.items() if name != last)
    head = next((math.prod(spec.shape) for spec in specs if spec.name == last), 0)
    tokens = _tokens(documents_of(reading_of(make)), make.calibrate_chunks)
    products, refined, effort = 0.0, Counter[tuple[str, Effort]](), effort_of(make)
    if make.imatrix == AUTO:
        products += _tokens(shipped("calibration"), make.imatrix_chunks) * block
    if make.calibrate:
        chosen = any(each.budget or (each.recipe and each.recipe.addition) for each in planned.wanted)
        weighs = chosen and make.sensitivity is None
        products += tokens * (block + head) * (BACKWARD if weighs else 0) + tokens * block
        if effort is not None:
            products += _hessians(shapes, tokens, share)
            for output in outputs:
                for spec in output.shards.whole.tensors:
                    if spec.name in shapes and is_refinable(spec.format.name):
                        refined[spec.format.name, effort] += math.prod(spec.shape)
        if effort == "best":
            products += (1 + len(outputs)) * MEASURED * CONTEXT * (block + head)
    if model.settings["quality"]:
        everything = len([each for each in model.wanted if not each.projector])
        products += (1 + everything) * _tokens(shipped("test"), None) * (block + head)
    width = next((spec.shape[-1] for spec in specs if spec.name == last), SIDE)
    return ModelRuns(products, refined, make.calibrate_device, width)


def run_seconds(runs: ModelRuns, threads: int) -> float:
    """About the seconds that this takes here, with so many threads."""
    refining = sum(weights / _refining(*kind) for kind, weights in runs.refined.items()) / threads
    return runs.products / _multiplying(runs.device, threads, runs.width) + refining if runs.products else 0.0


def _tokens(documents: Iterable[TextDocument], chunks: int | None) -> float:
    letters = sum(len(each.text) + sum(len(part["content"]) for part in each.messages) for each in documents)
    return min(letters / LETTERS, CONTEXT * chunks if chunks else math.inf)


def _active(metadata: Mapping[str, object], architecture: str) -> float:
    """The share of the experts that a token goes through."""
    used, there = (
        getattr(metadata.get(f"{architecture}.expert_{name}"), "data", None) for name in ("used_count", "count")
    )
    return used / there if isinstance(used, int) and isinstance(there, int) and there else 1.0


def _hessians(shapes: Mapping[str, tuple[int, ...]], tokens: float, share: float) -> float:
    """Products for the inputs of every layer with themselves, and for the factors of what they give."""
    inputs = {(name.split(".")[1], shape[:-2], shape[-1]) for name, shape in shapes.items()}
    return sum(
        tokens * (share * math.prod(many) if many else 1) * width**2 + math.prod(many) * width**3
        for _, many, width in inputs
    )


def _multiplying(device: str | None, threads: int, width: int) -> float:
    """Products per second of float32, of a model with hidden states of this width."""
    try:
        device = find_device(device)
    except Failure:  # which a run reports; torch may not be there
        a = np.ones((SIDE, SIDE), np.float32)
        started = time.perf_counter()
        a @ a
        return SIDE**3 / (time.perf_counter() - started) * threads  # numpy is told to use one thread
    if device == "cpu":
        return _through_blocks(threads, min(width, SIDE) // HEADS * HEADS or HEADS)
    import torch

    b = torch.ones((4 * SIDE, 4 * SIDE), device=device)
    float((b @ b)[0, 0])  # which waits for the device, and is slower the first time
    started = time.perf_counter()
    float((b @ b @ b)[0, 0])
    return 2 * (4 * SIDE) ** 3 / (time.perf_counter() - started)


def _through_blocks(threads: int, width: int) -> float:
    """Products per second of windows that go through a block side by side, each in a thread of its own, with what an
    observer does of them afterwards (see `evaluate.forward.through`).
    """
    import torch

    from ggufsmith.calibrate.collect import squares
    from ggufsmith.evaluate.forward import torch_threads

    wide = 3 * width
    states = torch.ones(CONTEXT, width)
    square, up, down = torch.ones(width, width), torch.ones(width, wide), torch.ones(wide, width)

    def block() -> list[torch.Tensor]:
        with torch.inference_mode():
            normal = torch.nn.functional.rms_norm(states, (width,))
            parts = ((normal @ square).reshape(1, CONTEXT, HEADS, -1).transpose(1, 2) for _ in range(3))
            mixed = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            mixed = mixed.transpose(1, 2).reshape(CONTEXT, width)
            after = torch.nn.functional.rms_norm(states + mixed @ square, (width,))
            gated = torch.nn.functional.silu(after @ up) * (after @ up)
            gated @ down
            return [normal, mixed, after, gated]

    def group() -> None:
        seen: list[list[torch.Tensor]] = []
        with torch_threads(1):
            parallel_for(lambda stop: lambda task: seen.append(block()), range(threads), threads)
        with torch_threads(threads):
            for inputs in seen:
                for each in inputs:
                    squares(each)

    group()  # the first time takes longer
    done, started = 0, time.perf_counter()
    while not done or time.perf_counter() - started < EACH:
        group()
        done += threads
    return done * CONTEXT * (4 * width**2 + 3 * width * wide) / (time.perf_counter() - started)


def _refining(type: str, effort: Effort) -> float:
    """Weights per second of one thread; kernels are loaded first."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((2 * SIDE, SIDE), np.float32)
    hessian = prepare(inputs.T @ inputs / np.float32(len(inputs)))
    rows = random.standard_normal((BLOCK, SIDE), np.float32)
    refine(BY_NAME[type], rows, hessian, effort=effort)
    started = time.perf_counter()
    refine(BY_NAME[type], rows, hessian, effort=effort)
    return rows.size / (time.perf_counter() - started)
