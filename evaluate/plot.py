"""The picture of an evaluation: divergence over size, as SVG, PNG, or a page with the SVG in it. Needs matplotlib."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.text import printable
from ggufsmith.evaluate.judged import Judged

KINDS = (".svg", ".png", ".html")
GB, MB = 10**9, 10**6
NONE = 1e-6  # nats: less is no loss, and has no place on a logarithmic scale
SETTINGS = {
    "svg.hashsalt": "ggufsmith",  # ids that do not change from run to run
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # the font that matplotlib carries
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # names of files are not formulas
}


def check_plot(path: Path) -> None:
    """Usage for a name that says no kind of picture, Unsupported without matplotlib: before the work, not after it."""
    if path.suffix.lower() not in KINDS:
        raise Usage(
            f"{path.suffix or 'a name without a suffix'} is not a kind of picture that can be drawn",
            where=path,
            fix=f"Name a file that ends in {', '.join(KINDS[:-1])} or {KINDS[-1]}.",
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Unsupported(
            "matplotlib, which draws pictures, is not installed", fix="pip install 'ggufsmith[plot]'"
        ) from error


def picture(rows: Sequence[Judged], *, title: str, suffix: str) -> bytes:
    """The content of a file with this suffix. The same rows give the same bytes with the same matplotlib."""
    kind = suffix.lower().removeprefix(".")
    if kind == "html":
        return page(rows, title).encode()
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context(SETTINGS):
        metadata = {"Date": None, "Creator": "ggufsmith"} if kind == "svg" else {"Software": "ggufsmith"}
        _figure(rows, title).savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()


def page(rows: Sequence[Judged], title: str) -> str:
    """A page that needs no other file."""
    drawn = picture(rows, title=title, suffix=".svg").decode()
    drawn = drawn[drawn.index("<svg") :]
    name = html.escape(printable(title))
    style = "body{margin:2rem;font-family:sans-serif}svg{max-width:100%;height:auto}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{name}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{drawn}</body>\n</html>\n"
    )


def _figure(rows: Sequence[Judged], title: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    unit, name = (GB, "GB") if max(row.bytes for row in rows) >= GB else (MB, "MB")
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    floor = min((row.whole.divergence for row in rows if row.whole.divergence > NONE), default=2 * NONE) / 2

    def height(row: Judged) -> float:
        return max(row.whole.divergence, floor)

    groups = list(dict.fromkeys(row.group for row in rows))
    for number, group in enumerate(groups):
        of_group = [row for row in rows if row.group == group]
        color = f"C{number}"
        sizes = [row.bytes / unit for row in of_group]
        losses = [height(row) for row in of_group]
        errors = [min(row.whole.divergence_error or 0, 0.99 * loss) for row, loss in zip(of_group, losses, strict=True)]
        axes.errorbar(sizes, losses, yerr=errors, fmt="none", ecolor=color, elinewidth=0.8, alpha=0.6)
        axes.plot(sizes, losses, "o", color=color, markersize=4, label=printable(group))
        for row, x, y in zip(of_group, sizes, losses, strict=True):
            label = printable(row.label) + ("" if row.whole.divergence > NONE else " (no loss)")
            axes.annotate(label, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, color=color)
    front = sorted((row.bytes / unit, height(row)) for row in rows if row.pareto)
    axes.plot(*zip(*front, strict=True), color="0.7", linewidth=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_xlabel(f"size, {name}")
    axes.set_ylabel("mean KL divergence from the source, nats per token")
    for axis in (axes.xaxis, axes.yaxis):  # matplotlib writes its own powers as formulas
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(printable(title), fontsize=10)
    axes.grid(True, which="major", linewidth=0.3)
    if len(groups) > 1:
        axes.legend(frameon=False)
    return figure
