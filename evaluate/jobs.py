"""What a job asks to be measured: see `convert.batch.extras.Measures`."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ggufsmith.convert.batch.job import JobModel
from ggufsmith.convert.batch.located import located
from ggufsmith.evaluate.card import command_of, with_table
from ggufsmith.evaluate.evaluation import EvalTask, evaluate
from ggufsmith.evaluate.variants import opened_by
from ggufsmith.pipeline.passes import Pass
from ggufsmith.pipeline.request import Request, TextOptions
from ggufsmith.quantize.measured import Progress


class JobMeasures:
    """Runs the models of a job, one at a time: each takes all cores, and torch counts its threads once for all."""

    def __init__(self) -> None:
        self._turn = threading.Lock()

    def check(self, request: Request, open_pass: Callable[[Request], Pass]) -> None:
        """Unsupported for a model that cannot be run, before it is converted."""
        from ggufsmith.evaluate.skeleton import build_skeleton

        with opened_by(open_pass, Request(request.path, request.source)) as model:
            build_skeleton(model)

    def with_table(
        self, card: str, model: JobModel, files: Sequence[Path], check: Callable[[], None], progress: Progress
    ) -> str:
        """The card with the table of these outputs, measured on the test text that ships."""
        source = f"{model.hub.hub}://{model.hub.id}" if model.hub else model.source.name
        reading = TextOptions()
        with self._turn, located(model, plan=False, told=lambda size: check()) as (there, opener):
            request = Request(there.request.path, there.request.source)
            found = evaluate(
                EvalTask(request, tuple(files), reading),
                opener=opener,
                progress=lambda what, total: progress(total),
            )
        return with_table(card, found, command_of([file.name for file in files], source, reading))
