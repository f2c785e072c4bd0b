"""The result of an evaluation: every file with its size and quality, as a report, as CSV, as the table of a card."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from pathlib import Path

from ggufsmith.container.errors import OutputConflict
from ggufsmith.container.text import size
from ggufsmith.container.untrusted import begins
from ggufsmith.evaluate.quality import Comparison, Quality, pareto
from ggufsmith.naming.quoting import code

SHARD = re.compile(r"-\d{5}-of-\d{5}$")
TOO_LARGE = "over 1e308"  # a perplexity that no number holds
FIRST = ("name", "group", "bytes", "bits_per_weight", "pareto")  # columns of the CSV
# What tables call the numbers of a file; docs/quality.md says what they are.
HEADS = ("perplexity", "KL divergence", "99.9 %", "same top token", "RMS Δp")


@dataclass(frozen=True)
class TokenSpeed:
    """What one machine needed, in llama.cpp: tokens per second of a prompt, and of an answer."""

    prompt: float
    generation: float


@dataclass(frozen=True)
class Judged:
    """One file, or one recipe that was judged without a file.

    name: of the file, with as much of its folder as tells it from others, or of the recipe. label: what distinguishes
    it, for tables and pictures. group: the folder of the file, and whether it is calibrated; files of one group are one
    series. bytes: of all its shards; for a recipe, what they would
    be. pareto: no other one is both smaller and closer to the source. quality: over all domains first, then of each, if
    there are several.
    """

    name: str
    label: str
    group: str
    bytes: int
    bits_per_weight: float
    pareto: bool
    quality: list[Quality]
    speed: TokenSpeed | None = None

    @property
    def whole(self) -> Quality:
        """The quality over all domains."""
        return self.quality[0]


@dataclass(frozen=True)
class Candidate:
    """What is known of a file or recipe before it is judged; see `Judged`."""

    name: str
    group: str
    bytes: int
    bits_per_weight: float


def judged(
    candidates: Sequence[Candidate], found: Sequence[list[Quality]], speeds: Sequence[TokenSpeed | None] = ()
) -> list[Judged]:
    """The candidates with what was found of each, the smallest first, Pareto-optimal ones marked."""
    best = pareto(
        [(each.bytes, rows[0].divergence) for each, rows in zip(candidates, found, strict=True)],
    )
    labels = labels_of([each.name for each in candidates])
    rows = [
        Judged(each.name, label, each.group, each.bytes, each.bits_per_weight, marked, quality, speed)
        for each, label, marked, quality, speed in zip(
            candidates, labels, best, found, speeds or [None] * len(candidates), strict=True
        )
    ]
    return sorted(rows, key=lambda row: (row.bytes, row.whole.divergence, row.name))


def labels_of(names: Sequence[str]) -> list[str]:
    """What distinguishes names of files: without what all begin with, up to a separator, and without .gguf.

    A folder stays: names have one only where it tells them apart.
    """
    pairs = [name.rpartition("/") for name in names]
    stems = [SHARD.sub("", base.removesuffix(".gguf")) for *_, base in pairs]
    words = [re.split(r"([-.])", stem) for stem in stems]
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))
    short = ["".join(each[shared if len(names) > 1 else 0 :]).lstrip("-.") for each in words]
    for bases in (short, stems):
        labels = [f"{folder}{slash}{base}" for (folder, slash, _), base in zip(pairs, bases, strict=True)]
        if all(bases) and len(set(labels)) == len(labels):
            return labels
    return list(names)


@dataclass(frozen=True)
class Evaluation:
    """One run of `ggufsmith eval`.

    source: the model that the files are compared with. engine, device, dtype: what ran them. texts: the names of the
    texts, and text_sha256 that of their token ids. context: tokens of a window, of whose second half each is scored.
    """

    schema: int
    source: str
    source_quality: list[Quality]
    engine: str
    device: str
    dtype: str
    texts: list[str]
    text_sha256: str
    context: int
    windows: int
    scored_tokens: int
    files: list[Judged]
    comparisons: list[Comparison]
    notes: list[str]
    seconds: float


def check_csv(path: Path) -> None:
    """OutputConflict, before the work, for a file at the table's place that is no such table. Failure: it cannot be
    read."""
    there = begins(path).removeprefix("\ufeff") if path.is_file() else ""
    if there and not there.startswith(",".join(FIRST)):
        raise OutputConflict(
            "a file that is no table of ggufsmith eval already exists",
            where=path,
            fix="Name another file with --csv.",
        )


def csv_of(rows: Sequence[Judged]) -> str:
    """One line for every file and domain, with a header; all numbers in full."""
    names = [each.name for each in fields(Quality)]
    speeds = [each.name for each in fields(TokenSpeed)] if any(row.speed for row in rows) else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FIRST, *names, *(f"{each}_speed" for each in speeds)])
    for row in rows:
        for quality in row.quality:
            writer.writerow(
                [
                    row.name,
                    row.group,
                    row.bytes,
                    row.bits_per_weight,
                    int(row.pareto),
                    *(getattr(quality, name) for name in names),
                    *(getattr(row.speed, name) if row.speed else "" for name in speeds),
                ]
            )
    return text.getvalue()


def markdown(rows: Sequence[Judged], *, source: Quality | None = None) -> str:
    """The table for a model card or a document. source: shown last, if given."""
    timed = any(row.speed for row in rows)
    heads = ["File", "Size", "Bits", *(f"{head[0].upper()}{head[1:]}" for head in HEADS)]
    heads += ["Prompt tokens/s", "Tokens/s"] if timed else []
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    lines += [
        [cell(row), size(row.bytes), f"{row.bits_per_weight:.2f}", *_cells(row.whole), *_speeds(row, timed)]
        for row in rows
    ]
    if source is not None:
        blank = [""] * (len(heads) - 4)
        lines.append(["source", "", "", _with_error(source.perplexity, source.perplexity_error), *blank])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: Judged) -> str:
    """The label of a row in Markdown; bold for one that is Pareto-optimal. It cannot end the table."""
    name = code(row.label, cell=True)
    return f"**{name}**" if row.pareto else name


def _cells(quality: Quality) -> Iterable[str]:
    return (
        _with_error(quality.perplexity, quality.perplexity_error),
        _with_error(quality.divergence, quality.divergence_error),
        f"{quality.divergence_999:.3g}",
        f"{100 * quality.same_top:.1f} %",
        f"{100 * quality.change:.2f} %",
    )


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return TOO_LARGE
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"


def _speeds(row: Judged, timed: bool) -> list[str]:
    if not timed:
        return []
    return [f"{row.speed.prompt:.0f}", f"{row.speed.generation:.1f}"] if row.speed else ["", ""]
