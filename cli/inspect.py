"""`ggufsmith inspect`: what a GGUF file holds, or how two differ."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufsmith.cli.options import AsJson

Row = Sequence[str]


def inspect(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE", help="A GGUF file, or any shard of a split model. Give two files to compare them."
        ),
    ],
    no_tensors: Annotated[bool, typer.Option("--no-tensors", help="Do not list the tensors.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE.html", help="Write it as a page too: sizes as bars, types as a map of the layers."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a GGUF file holds: header, keys, tensors, types and sizes; or how two files differ.

    The weights are not read, so this is fast for files of any size.
    """
    from ggufsmith.cli.guard import guarded

    def work() -> None:
        from ggufsmith.cli import render
        from ggufsmith.cli.inspect_page import page
        from ggufsmith.container.apart import check_all_apart
        from ggufsmith.container.errors import Usage
        from ggufsmith.container.replace import check_place, replace_text
        from ggufsmith.container.shards import open_gguf_set
        from ggufsmith.container.summary import difference, shown, summary, without_tensors

        if len(files) > 2:
            raise Usage(
                f"inspect takes one file, or two to compare, not {len(files)}",
                fix="If the model is split, name any one shard.",
            )
        if html and html.suffix.lower() != ".html":
            raise Usage("the name of a page ends in .html", where=html, fix=f"--html {html.name}.html")
        check_place(html)
        with ExitStack() as opened:
            models = [opened.enter_context(open_gguf_set(file)) for file in files]
            check_all_apart([html], [path for model in models for path in model.paths])
            report = difference(*models) if len(models) == 2 else summary(*models)
            whole = [summary(model) for model in models] if html else []
        if no_tensors:
            report = without_tensors(report)
        tables = list(_differences(report, files) if len(files) == 2 else _blocks(report))
        if html:
            title = " and ".join(shown(file.name, 200) for file in files)
            replace_text(html, page(whole, tables, title))
        if as_json:
            render.as_json(report)
        else:
            for title, heads, rows in tables:
                render.table(rows, heads, title)
            if html:
                render.lines([("page", str(html))])

    guarded(work, as_json)


def _blocks(report: dict[str, Any]) -> Iterator[tuple[str, Row, Iterable[Row]]]:
    """(title, column heads, rows) of each table. A head that ends in a blank marks a column of numbers."""
    yield "", ("", ""), list(_facts(report))
    yield (
        "roles",
        ("role", "tensors ", "weights ", "size ", "share ", "bits ", "types"),
        [
            (name, *_numbers(entry, report["tensor_bytes"]), ", ".join(entry["types"]))
            for name, entry in report["roles"].items()
        ],
    )
    yield "keys", ("key", "type", "value"), [_key(key, entry) for key, entry in report["metadata"].items()]
    if "tensors" in report:
        heads = ("tensor", "shape", "type", "bytes ", "offset ")
        sharded = len(report["files"]) > 1
        yield "tensors", (*heads, "file") if sharded else heads, [_tensor(entry) for entry in report["tensors"]]


def _facts(report: dict[str, Any]) -> Iterator[Row]:
    from ggufsmith.cli import render
    from ggufsmith.container.summary import shown

    for file in report["files"]:
        yield "file", f"{shown(file['path'], 4096)}  {render.size(file['bytes'])} ({file['bytes']} bytes)"
    yield (
        "format",
        f"GGUF version {report['version']}, alignment {report['alignment']}, header of {report['header_bytes']} bytes",
    )
    name, architecture = (
        shown(report["metadata"].get(f"general.{key}", {}).get("value", "unknown")) for key in ("name", "architecture")
    )
    yield "model", f"{name}, {architecture}, {render.count(report['parameters'])} weights"
    types = ", ".join(f"{entry['tensors']} {name}" for name, entry in report["types"].items())
    bits = report["bits_per_weight"]
    yield "tensors", f"{report['tensor_count']}" + (f" ({types}), {bits:.2f} bits per weight" if bits else "")


def _numbers(entry: dict[str, Any], total: int) -> Row:
    from ggufsmith.cli import render

    return (
        str(entry["tensor_count"]),
        render.count(entry["parameters"]),
        render.size(entry["tensor_bytes"]),
        f"{100 * entry['tensor_bytes'] / total:.1f} %",
        f"{entry['bits_per_weight']:.2f}",
    )


def _key(key: str, entry: dict[str, Any]) -> Row:
    from ggufsmith.container.summary import shown

    value = entry["value"]
    text = shown(value)
    if entry.get("length", 0) > len(value if isinstance(value, list) else ()) and not text.endswith("…"):
        text = text.removesuffix("]") + ", …]"
    return shown(key), entry["type"], text


def _tensor(entry: dict[str, Any]) -> Row:
    from ggufsmith.container.summary import shown

    cells = (shown(entry["name"]), " x ".join(map(str, entry["shape"])), entry["type"])
    numbers = (str(entry["bytes"]), str(entry["offset"]))
    return (*cells, *numbers, entry["file"]) if "file" in entry else (*cells, *numbers)


def _differences(report: dict[str, Any], files: Sequence[Path]) -> Iterator[tuple[str, Row, Iterable[Row]]]:
    from ggufsmith.container.summary import shown

    keys, tensors = report["keys"], report["tensors"]
    heads = ("", str(files[0]), str(files[1]))
    rows = [("bytes", *map(str, report["bytes"]))]
    rows += [("types", f"{each['tensors']} {each['first']}", each["second"]) for each in tensors["types"]]
    counts = report["tensor_counts"]
    only = [counts[kind] for kind in ("only_first", "only_second")]
    rows += [("tensors only in this file", *map(str, only))] if any(only) else []
    if not any((*keys.values(), *counts.values())):
        rows.append(("header", "no differences", "weights are not compared"))
    yield "sizes", heads, rows
    yield (
        "keys",
        heads,
        [
            *((shown(key), "there", "") for key in keys["only_first"]),
            *((shown(key), "", "there") for key in keys["only_second"]),
            *(
                (
                    shown(key) + (f"[{change['at']}]" if "at" in change else ""),
                    *(f"{change[side]['type']} {shown(change[side]['value'], 40)}" for side in ("first", "second")),
                )
                for key, change in keys["changed"].items()
            ),
        ],
    )
    if "changed" not in tensors:
        return
    yield (
        "tensors",
        heads,
        [
            *((shown(name), "there", "") for name in tensors["only_first"]),
            *((shown(name), "", "there") for name in tensors["only_second"]),
            *(
                (
                    shown(name),
                    *(" ".join((change[side]["type"], str(change[side]["shape"]))) for side in ("first", "second")),
                )
                for name, change in tensors["changed"].items()
            ),
        ],
    )
