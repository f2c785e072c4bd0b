"""Quality measured. For `evaluate`, the call, and `eval`, the command."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from ggufsmith.progress import Display

if TYPE_CHECKING:
    from ggufsmith.convert.hub.names import Located
    from ggufsmith.evaluate.evaluation import EvalTask
    from ggufsmith.evaluate.judged import Evaluation


def evaluated(
    task: "EvalTask", against: str, display: Display, place: "AbstractContextManager[Located] | None" = None
) -> "Evaluation":
    """Run the task. against: the name of the source. place: instead of the name, where the source is."""
    from dataclasses import replace
    from functools import partial

    from ggufsmith.calibrated import with_calibration
    from ggufsmith.convert.open import file_of, open_pass
    from ggufsmith.evaluate.engine import check_llama_cpp
    from ggufsmith.evaluate.evaluation import evaluate
    from ggufsmith.evaluate.needed import need_libraries
    from ggufsmith.located import HubRequest, located

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        with display.progress(what, total, "weights" if task.engine == "torch" else "windows") as advance:
            yield advance

    options = task.request.source
    file = file_of(against) if place is None else None
    wanted = HubRequest(against, options.revision, options.token, stream=options.stream, weights=True)
    needed = need_libraries if task.engine == "torch" else check_llama_cpp
    with place or located(wanted, display, before=needed) as found:
        request = replace(task.request, path=file or found.folder)
        opener = partial(open_pass, open_files=found.open_files, notes=found.notes)
        with with_calibration(request, opener, display, dry_run=False) as (made, opened):
            return evaluate(replace(task, request=made), opener=opened, progress=progress)
