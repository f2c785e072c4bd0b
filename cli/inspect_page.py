"""What `ggufsmith inspect` says, as a page that needs no other file: sizes as bars, types as a map of the layers.

What a file says is escaped, and the page has no scripts, so that a report on a hostile file can be opened.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.summary import shown
from ggufsmith.container.text import size

Row = Sequence[str]
Table = tuple[str, Row, Iterable[Row]]
BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.weight")
LEAST, MOST = 1.5, 8.5  # bits per weight, between which colors go from red to blue
LONG = 60  # rows of a table that is folded
STYLE = """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1rem;max-width:75rem;font:15px/1.45 system-ui,sans-serif}
h1{font-size:1.3rem;overflow-wrap:anywhere}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
div.wide{overflow-x:auto}table{border-collapse:collapse}
td,th{padding:.15rem .6rem .15rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8884}
td.number,th.number{text-align:right}td.number,th{white-space:nowrap}.wide td{overflow-wrap:break-word}
.rest{width:100%}.bar{display:block;height:.8rem;min-width:1px;background:#4a7dbd;border-radius:2px}
.map td,.map th{padding:.05rem .3rem;font-size:12px;text-align:center;border:1px solid #8884;white-space:nowrap}
.map td.type{color:#111}.map td.changed{outline:2px solid #c00;outline-offset:-2px;font-weight:bold}
summary{cursor:pointer;font-weight:bold}
"""


def page(reports: Sequence[Mapping[str, Any]], tables: Iterable[Table], title: str) -> str:
    """The page of one file, or of two that are compared.

    reports: the `container.summary.summary` of each. tables: (title, column heads, rows) as the terminal shows them.
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for report in reports:
        label = shown(report["files"][0]["path"].rpartition("/")[2], 200)
        parts += [f"<h2>Size by role{f': {html.escape(label)}' if len(reports) > 1 else ''}</h2>", _bars(report)]
    parts += ["<h2>Types by layer</h2>", _map(reports)]
    parts += [_table(*each) for each in tables]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _bars(report: Mapping[str, Any]) -> str:
    largest = max((entry["tensor_bytes"] for entry in report["roles"].values()), default=1) or 1
    rows = [
        f"<tr><th>{html.escape(name)}</th><td class=number>{html.escape(size(entry['tensor_bytes']))}</td>"
        f"<td class=number>{entry['bits_per_weight']:.2f} bits</td>"
        f'<td class=rest><span class=bar style="width:{100 * entry["tensor_bytes"] / largest:.1f}%"></span></td></tr>'
        for name, entry in report["roles"].items()
        if entry["parameters"]
    ]
    return f"<table class=rest>{''.join(rows)}</table>"


def _map(reports: Sequence[Mapping[str, Any]]) -> str:
    """A row for every layer, a column for every matrix in it, and the matrices outside of layers first."""
    types: list[dict[str, str]] = [
        {each["name"]: each["type"] for each in report["tensors"] if len(each["shape"]) > 1} for report in reports
    ]
    names = list(dict.fromkeys(name for found in types for name in found))
    inside = [found for name in names if (found := BLOCK.fullmatch(name))]
    columns = list(dict.fromkeys(found[2] for found in inside))
    layers = sorted({int(found[1]) for found in inside})
    outside = [name for name in names if not BLOCK.fullmatch(name)]

    def cell(name: str) -> str:
        here = [found.get(name, "") for found in types]
        if not any(here):
            return "<td></td>"
        changed = len(set(here)) > 1
        text = " → ".join(each or "none" for each in here) if changed else here[0]
        mark = " changed" if changed else ""
        color, tip = _color(here[-1] or here[0]), html.escape(shown(name))
        return f'<td class="type{mark}" style="background:{color}" title="{tip}">{text}</td>'

    rows = [f"<tr><th>{html.escape(shown(name))}</th>{cell(name)}</tr>" for name in outside]
    parts = [f"<div class=wide><table class=map>{''.join(rows)}</table></div>"] if rows else []
    if layers:
        heads = "".join(f"<th>{html.escape(shown(each))}</th>" for each in columns)
        body = "".join(
            f"<tr><th>{layer}</th>{''.join(cell(f'blk.{layer}.{each}.weight') for each in columns)}</tr>"
            for layer in layers
        )
        parts.append(f"<div class=wide><table class=map><tr><th>layer</th>{heads}</tr>{body}</table></div>")
    return "\n".join(parts) or "<p>There are no matrices.</p>"


def _color(type: str) -> str:
    """From red, few bits per weight, to blue, many."""
    share = min(max((BY_NAME[type].bits_per_weight - LEAST) / (MOST - LEAST), 0), 1)
    return f"hsl({220 * share:.0f} 70% 78%)"


def _table(title: str, heads: Row, rows: Iterable[Row]) -> str:
    listed = list(rows)
    if not listed:
        return ""
    classes = [" class=number" if head.endswith(" ") else "" for head in heads]
    top = "".join(f"<th{kind}>{html.escape(head.strip())}</th>" for head, kind in zip(heads, classes, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{html.escape(cell)}</td>' for cell, kind in zip(row, classes, strict=True))}</tr>"
        for row in listed
    )
    head = f"<tr>{top}</tr>" if any(head.strip() for head in heads) else ""
    table = f"<div class=wide><table>{head}{body}</table></div>"
    name = html.escape(title.capitalize() or "File")
    if len(listed) > LONG:
        return f"<details><summary>{name}</summary>{table}</details>"
    return f"<h2>{name}</h2>{table}"
