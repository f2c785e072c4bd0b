"""What is found in rows while they are encoded, and must not be passed over in silence."""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """How many weights, and the (row, column) of the first."""

    count: int = 0
    first: tuple[int, int] | None = None


@dataclass(frozen=True)
class Report:
    """What the caller must know about rows that were encoded.

    nonfinite:  weights that are NaN or infinite. overflow: finite weights that the type cannot hold.
    unweighted: weights whose importance could not be used, and that were weighted evenly instead.
    """

    nonfinite: Finding = Finding()
    overflow: Finding = Finding()
    unweighted: Finding = Finding()

    @staticmethod
    def merge(parts: Iterable[tuple[int, "Report"]]) -> "Report":
        """One report from those of several calls, each with the number of its first row, in the order of rows."""

        def total(shifted: list[tuple[int, Finding]]) -> Finding:
            firsts = ((row + found.first[0], found.first[1]) for row, found in shifted if found.first is not None)
            return Finding(sum(found.count for _, found in shifted), next(firsts, None))

        listed = list(parts)
        return Report(
            total([(row, report.nonfinite) for row, report in listed]),
            total([(row, report.overflow) for row, report in listed]),
            total([(row, report.unweighted) for row, report in listed]),
        )


class Tally:
    """What was found in each output, added up by tensor while chunks are done, in any order. Thread-safe.

    unweighted: for each output the tensors some of whose weights had no usable importance.
    """

    def __init__(self, outputs: int) -> None:
        self.unweighted: list[dict[str, Finding]] = [{} for _ in range(outputs)]
        self._lock = threading.Lock()

    def add(self, name: str, first: int, reports: Sequence[Report]) -> None:
        """Take in a chunk of a tensor that begins at row `first`, with a report for each output."""
        with self._lock:
            for found, report in zip(self.unweighted, reports, strict=True):
                if (more := report.unweighted).first is None:
                    continue
                place = (first + more.first[0], more.first[1])
                before = found.get(name, Finding(0, place))
                found[name] = Finding(before.count + more.count, min(before.first or place, place))
