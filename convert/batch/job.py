"""What a job file says, once it is read and valid: models, each with its outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufsmith.convert.hub.names import HubModel
from ggufsmith.pipeline.request import AUTO, Request
from ggufsmith.quantize.budget import Budget
from ggufsmith.quantize.recipes.assign import Recipe


@dataclass(frozen=True)
class WantedOutput:
    """One output. label: as the job file has it; recipe: None for an unquantized output.

    path:   the name that the model would have in one file. lora: instead, if it is an adapter, which of a model on a
            hub shows when it is opened.
    budget: to choose the recipe by, when the model is opened.
    projector: the type of the matrices, if it is the file of the encoders.
    """

    label: str
    recipe: Recipe | None
    path: Path
    lora: Path
    budget: Budget | None = None
    projector: str | None = None


@dataclass(frozen=True)
class JobModel:
    """One model of a job.

    place:    FILE:LINE.
    folder:   where its files go; it lies in the output folder.
    settings: key -> value, of every key of SETTINGS.
    request:  the same as a request, but for what is made, which `wanted` says. Its path is on the disk; that of a model
              on a hub is not before it is opened (see `located`).
    """

    name: str
    place: str
    folder: Path
    wanted: tuple[WantedOutput, ...]
    settings: Mapping[str, Any]
    request: Request
    hub: HubModel | None = None

    @property
    def source(self) -> Path:
        """The model's folder or file."""
        return self.request.path

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a folder, or a model on a hub, and not a file."""
        return self.hub is not None or self.source.is_dir()

    @property
    def key(self) -> Path:
        """What tells it from the other models of the job."""
        return self.folder / self.name

    @property
    def kept_imatrix(self) -> Path | None:
        """Where the importance matrix that is made on the way stays, if it does."""
        return self.folder / f"{self.name}-imatrix.gguf" if self.request.make.keep_imatrix else None

    @property
    def is_run(self) -> bool:
        """Whether the model is run: to learn of its activations, or to measure what outputs have lost."""
        make = self.request.make
        return bool(make.calibrate or make.imatrix == AUTO or self.settings["quality"])

    @property
    def state_path(self) -> Path:
        """Where it is recorded which of its outputs are finished."""
        return self.folder / f".{self.name}.batch.json"

    def beside(self, key: str) -> Path | None:
        """The file that the setting `key` names, in the model's folder."""
        name = self.settings[key]
        return self.folder / name if name else None


@dataclass(frozen=True)
class JobFile:
    """A valid job.

    models: those of this runner. taken: the files that any runner reads or makes, where no report can be.
    """

    path: Path
    output: Path
    models: tuple[JobModel, ...]
    taken: tuple[Path, ...] = ()
