"""The publishing of a job: a model is uploaded as soon as it is finished, while the next ones are being made."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Self

from ggufsmith.container.errors import Failure, Usage
from ggufsmith.convert.batch.job import JobFile, JobModel
from ggufsmith.convert.batch.report import Outcome
from ggufsmith.convert.batch.run import Draft, Watcher
from ggufsmith.convert.hub.upload import Repository, Uploaded
from ggufsmith.progress import Display
from ggufsmith.pushing import PushTask, push, repository_of


class PushingWatcher(Watcher):
    """Watches a job, tells another watcher, and uploads what is finished; for use in a `with`.

    Models that were finished before are uploaded too: what is there is not sent again, and what an earlier run did not
    get there is. One upload runs at a time.

    Before anything is done: Usage without a token, and for repositories that do not exist and are not to be made. That
    the hub cannot be reached at the moment does not stop a job.
    """

    def __init__(self, job: JobFile, watch: Watcher, thread_name: str = "upload") -> None:
        self.watch = watch
        self._repositories: dict[Path, tuple[PushTask, Repository]] = {}
        for model in job.models:
            if model.settings["push"]:
                task = _task(model)
                self._repositories[model.key] = task, repository_of(task)
        _check(job, self._repositories)
        self._uploads: dict[Path, Future[Uploaded]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=thread_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=error[0] is None, cancel_futures=True)

    def planned(self, draft: Draft) -> None:
        """See Watcher."""
        self.watch.planned(draft)

    def begun(self, draft: Draft) -> None:
        """See Watcher."""
        self.watch.begun(draft)

    def advanced(self, model: JobModel, weights: int) -> None:
        """See Watcher."""
        self.watch.advanced(model, weights)

    def step(self, model: JobModel, what: str, weights: int) -> AbstractContextManager[Callable[[int], None]]:
        """See Watcher."""
        return self.watch.step(model, what, weights)

    def loaded(self, seconds: float) -> None:
        """See Watcher."""
        self.watch.loaded(seconds)

    def ended(self, outcome: Outcome) -> None:
        """See Watcher. The upload of a finished model begins."""
        self.watch.ended(outcome)
        key = outcome.model.key
        if key in self._repositories and outcome.status in ("done", "finished"):
            task, repository = self._repositories[key]
            self._uploads[key] = self._pool.submit(push, _finished(task, outcome), Display(), repository)

    def published(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Wait for the uploads. A model that could not be uploaded has failed, although its files are there."""
        found = []
        for outcome in outcomes:
            upload = self._uploads.get(outcome.model.key)
            error = upload.exception() if upload is not None else None
            if error is None:
                found.append(outcome)
                continue
            failure = (
                error if isinstance(error, Failure) else Failure(f"internal error: {type(error).__name__}: {error}")
            )
            found.append(replace(outcome, status="failed", error=failure))
        return found


def _check(job: JobFile, repositories: Mapping[Path, tuple[PushTask, Repository]]) -> None:
    """Usage, with all of them, for repositories that are missing."""
    missing = []
    for model in job.models:
        if model.key in repositories:
            try:
                repositories[model.key][1].check()
            except Usage as error:
                missing.append(f"{model.place}: {error.where}: {error.what}")
            except Failure:
                continue
    if missing:
        fix = "Check the names, or set create = true, which makes a repository, or private = true."
        raise Usage("there is nowhere to publish; nothing was done", where=job.path, also=missing, fix=fix)


def _task(model: JobModel) -> PushTask:
    said = model.settings
    return PushTask(
        (), said["push"], create=said["create"], private=said["private"], replace=said["replace"], beside=False
    )


def _finished(task: PushTask, outcome: Outcome) -> PushTask:
    """The task with the files of a finished model, their hashes, and the card of the job."""
    model = outcome.model
    files = {file.name: file.sha256 for made in outcome.made for file in made.files}
    card, kept = model.beside("card"), model.kept_imatrix
    return replace(
        task,
        files=[model.folder / name for name in files],
        hashes={model.folder / name: digest for name, digest in files.items() if digest},
        card=card if card is not None and card.is_file() else None,
        extra=[kept] if kept is not None and kept.is_file() else [],
    )
