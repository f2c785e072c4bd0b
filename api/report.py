"""The JSON report of a run. docs/report.schema.json is generated from these records.

`batch_report` has that of a job.
"""

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ggufsmith.pipeline.outputs import OutputFile, Written
    from ggufsmith.pipeline.passes import Pass

SCHEMA = 2  # raised when a key changes its meaning or goes away


@dataclass(frozen=True)
class FileReport:
    """One file of an output. sha256: in hexadecimal."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorReport:
    """One tensor of an output, as a dry run shows it.

    shape: the slowest axis first. wanted_type: that of its rule, where the rows do not fit it. offset: bytes from the
    start of the file, or of all shards one behind the other. sources, op: what it is made from, and how.
    """

    name: str
    shape: "list[int]"
    source_type: str
    type: str
    wanted_type: str
    reason: str
    bytes: int
    offset: int
    sources: "list[str]"
    op: str


@dataclass(frozen=True)
class OutputReport:
    """One output. recipe: its name, or the type of an unquantized output. output: the paths of its files."""

    recipe: str
    output: "list[str]"
    bytes: int
    bits_per_weight: float
    tensor_count: int
    types: "dict[str, int]"
    fallbacks: "list[str]"
    requantized: "list[str]"
    notes: "list[str]"
    tensors: "list[TensorReport] | None" = None
    files: "list[FileReport] | None" = None
    tensor_sha256: "dict[str, str] | None" = None


@dataclass(frozen=True)
class ImportanceReport:
    """How an importance matrix covers the model: names of matrices."""

    covered: "list[str]"
    missing: "list[str]"


@dataclass(frozen=True)
class RunReport:
    """One run of gguf-convert or gguf-quant. found: what the work showed. Without a dry run, it, seconds and
    weights_per_second are set. kept_imatrix: the path of the importance matrix that --keep-imatrix kept.
    """

    schema: int
    input: "list[str]"
    architecture: str
    source_bytes: int
    parameters: int
    notes: "list[str]"
    importance: "ImportanceReport | None"
    outputs: "list[OutputReport]"
    dry_run: bool
    found: "list[str] | None" = None
    seconds: "float | None" = None
    weights_per_second: "float | None" = None
    kept_imatrix: "str | None" = None


def run_report(planned: "Pass", entries: "Sequence[OutputReport]", written: "Written | None" = None) -> RunReport:
    """The report of a pass. written: None for a dry run."""
    covers = planned.importance
    return RunReport(
        SCHEMA,
        [str(path) for path in planned.info.paths],
        planned.info.architecture,
        planned.info.nbytes,
        planned.weights,
        list(planned.notes),
        ImportanceReport(covers["covered"], covers["missing"]) if covers is not None else None,
        list(entries),
        written is None,
        list(written.notes) if written else None,
        written.seconds if written else None,
        planned.weights / written.seconds if written else None,
    )


def output_report(planned: "Pass", output: "OutputFile", *, tensors: bool = False) -> OutputReport:
    """The report of one output. tensors: list every one of them."""
    return OutputReport(
        output.label,
        [str(path) for path in output.paths],
        output.size,
        output.bits_per_weight,
        len(output.shards.whole.tensors),
        output.types,
        list(output.fallbacks),
        list(output.requantized),
        list(output.notes),
        tensor_reports(planned, output) if tensors else None,
    )


def tensor_reports(planned: "Pass", output: "OutputFile") -> list[TensorReport]:
    """Every tensor of an output, in the order of its layout."""
    whole = output.shards.whole
    return [
        TensorReport(
            spec.name,
            list(spec.shape),
            tensor.held.name,
            spec.format.name,
            output.wanted(k).name,
            output.reason(k),
            spec.nbytes,
            offset,
            list(tensor.sources),
            tensor.op,
        )
        for k, (tensor, spec, offset) in enumerate(
            zip(planned.tensors_of(output), whole.tensors, whole.offsets, strict=True)
        )
    ]


def as_dict(report: Any) -> Any:
    """Plain containers for JSON; fields that are None by default and were not set are left out."""
    if is_dataclass(report):
        values = {each.name: (getattr(report, each.name), each.default) for each in fields(report)}
        return {
            name: as_dict(value) for name, (value, default) in values.items() if not (value is None and default is None)
        }
    if isinstance(report, list):
        return [as_dict(each) for each in report]
    return report


def json_schema(record: type = RunReport, title: str = f"ggufsmith report, schema {SCHEMA}") -> "dict[str, Any]":
    """The JSON schema (draft 2020-12) of a report."""
    from typing import get_type_hints

    def schema_of(kind: Any) -> dict[str, Any]:
        text = str(kind)
        simple = {int: "integer", float: "number", str: "string", bool: "boolean"}
        if kind in simple:
            return {"type": simple[kind]}
        if is_dataclass(kind):
            return table(kind)
        args: tuple[Any, ...] = getattr(kind, "__args__", ())
        if type(None) in args:
            return {"anyOf": [schema_of(without_none(kind)), {"type": "null"}]}
        if text.startswith("list"):
            return {"type": "array", "items": schema_of(args[0])}
        return {"type": "object", "additionalProperties": schema_of(args[1])}

    def without_none(kind: Any) -> Any:
        return next(each for each in kind.__args__ if each is not type(None))

    def table(kind: Any) -> dict[str, Any]:
        hints = get_type_hints(kind)
        optional = {each.name for each in fields(kind) if each.default is None}  # left out, and never null
        return {
            "type": "object",
            "description": " ".join((kind.__doc__ or "").split()),
            "additionalProperties": False,
            "required": [name for name in hints if name not in optional],
            "properties": {
                name: schema_of(without_none(hint) if name in optional else hint) for name, hint in hints.items()
            },
        }

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **table(record),
    }
