"""ggml's formats for the pipeline: rows are encoded, refused where weights would not survive, and checked."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.formats import Format
from ggufsmith.pipeline.encoder import Conversion, RowRange
from ggufsmith.pipeline.findings import Report
from ggufsmith.pipeline.stream import CHUNK
from ggufsmith.quantize.checks import EVERY, check_decoded, check_row, check_scales
from ggufsmith.quantize.rows import decode, encode, prepare


@dataclass(frozen=True)
class GgmlEncoder:
    """A `pipeline.encoder.Encoder` that writes the bytes of `ggml_quantize_chunk`."""

    def load(
        self, conversions: Iterable[Conversion], advance: Callable[[int, int], None] = lambda done, total: None
    ) -> float:
        """See `Encoder.load`."""
        return prepare(conversions, advance)

    def decode(self, source: Format, blocks: NDArray[np.uint8], out: NDArray[np.float32], *, place: RowRange) -> None:
        """See `Encoder.decode`."""
        decode(source, blocks, out)
        if _looked_at(place, out.shape[1]):
            check_decoded(source, blocks, out, place.origin)

    def encode(
        self,
        target: Format,
        rows: NDArray[Any],
        out: NDArray[np.uint8],
        *,
        source: Format,
        importance: NDArray[np.float32] | None,
        place: RowRange,
    ) -> Report:
        """See `Encoder.encode`."""
        report = _encode_slices(target, rows, out, source, importance, place)
        _refuse(report, target, place)
        check_scales(target, out, place.origin)
        if _looked_at(place, rows.shape[1]):
            check_row(target, out, rows, source, partial(_importance_of, importance, place), place.origin)
        return report


GGML = GgmlEncoder()


def _looked_at(place: RowRange, width: int) -> bool:
    """Whether a row of the chunk that begins here is checked."""
    return place.first * width // CHUNK % EVERY == 0


def _encode_slices(
    target: Format,
    rows: NDArray[Any],
    out: NDArray[np.uint8],
    source: Format,
    importance: NDArray[np.float32] | None,
    place: RowRange,
) -> Report:
    """`encode`, with the importance of each slice of a stack for the rows of that slice."""
    if importance is None or importance.ndim == 1:
        return encode(target, rows, out, source=source, importance=importance)
    return Report.merge(
        (
            part.start,
            encode(target, rows[part], out[part], source=source, importance=np.ascontiguousarray(importance[k])),
        )
        for k, part in place.parts(len(importance), len(rows))
    )


def _importance_of(importance: NDArray[np.float32] | None, place: RowRange, row: int) -> NDArray[np.float32] | None:
    """The importance for row `place.first + row`: that of its slice, for a stack."""
    if importance is None or importance.ndim == 1:
        return importance
    return np.ascontiguousarray(importance[(place.first + row) * len(importance) // place.count])


def _refuse(report: Report, target: Format, place: RowRange) -> None:
    """Raise for weights that would not survive."""
    for finding, kind, what, fix in (
        (
            report.nonfinite,
            Malformed,
            "weights are NaN or infinite",
            "The model is damaged. Download it again.",
        ),
        (
            report.overflow,
            Unsupported,
            f"weights are too large for {target.name}",
            "Choose bf16 or f32 for it: --outtype bf16 for gguf-convert and gguf-quant, --dtype bfloat16 for to-hf.",
        ),
    ):
        if finding.first is not None:
            row, column = finding.first
            what = f"{finding.count} {what}, the first at row {place.first + row}, column {column}"
            raise kind(what, where=place.origin, fix=fix)
