"""The projector of a model folder, opened and planned: what its file is made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gguf.constants import GGUFType, Keys, LlamaFileType

from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import Layout, TensorSpec, lay_out
from ggufsmith.container.values import Metadata, string
from ggufsmith.convert.projectors.plan import ProjectorPlan
from ggufsmith.naming.filename import SIDECARS, FileName
from ggufsmith.naming.identity import Parameters
from ggufsmith.quantize.resolve import PROJECTOR_TYPES

# general.file_type of the file whose matrices have a type.
PROJECTOR_FILE_TYPES: Mapping[str, LlamaFileType] = MappingProxyType(
    {
        "F32": LlamaFileType.ALL_F32,
        "F16": LlamaFileType.MOSTLY_F16,
        "BF16": LlamaFileType.MOSTLY_BF16,
        "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
)


@dataclass(frozen=True)
class OpenedProjector:
    """A projector, planned; no tensor byte has been read.

    model: the name of its model. general: the general.* keys for so many parameters and a file type.
    """

    plan: ProjectorPlan
    model: str
    general: Callable[[Parameters, int], Metadata]

    def format(self, outtype: str | None) -> Format:
        """The type of the matrices."""
        return BY_NAME[(outtype or PROJECTOR_TYPES[0]).upper()]

    def layout(self, format: Format) -> Layout:
        """The file whose matrices have this type."""
        shapes = [(output.name, output.shape) for output in self.plan.outputs]
        metadata = {
            **self.general(Parameters.of(shapes), PROJECTOR_FILE_TYPES[format.name]),
            Keys.General.TYPE: string(GGUFType.MMPROJ),
            **self.plan.metadata,
        }
        specs = [TensorSpec(output.name, output.shape, output.stored_as(format)) for output in self.plan.outputs]
        return lay_out(metadata, specs)

    def name(self, encoding: str) -> str:
        """The name of its file, as llama.cpp looks for it beside the model: mmproj-MODEL-F16.gguf."""
        return FileName(self.model.strip().replace(" ", "-"), encoding=encoding, sidecar=SIDECARS[0]).format()
