"""The options of commands, made from the records of `pipeline.request`, and those that only the command line has."""

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from ggufsmith.pipeline.option import Declared, Input, declared


def show_version(wanted: bool) -> None:
    """Print the version, and what CPU kernels are for, and leave, if that was asked for."""
    if wanted:
        from ggufsmith.cli.guard import guarded
        from ggufsmith.container.release import own_version
        from ggufsmith.quantize import cpu, machine_code

        print(f"ggufsmith {own_version()}")
        guarded(lambda: print(f"machine code for {cpu.level().name}, {machine_code.origin()}"), False)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print the version and exit.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show every tensor's type and the exact size, and write nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON report on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]

# What a field's type, as its record declares it, is on the command line. All other tuples are of texts.
TYPES: dict[str, Any] = {
    "bool": bool,
    "int": int,
    "int | None": int | None,
    "Path | None": Path | None,
    "str | None": str | None,
    "tuple[Path, ...]": list[Path] | None,
    "tuple[float, ...]": list[float] | None,
}
REPEATED = "tuple["


def with_records(*kinds: Input, only: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: each parameter that is a record of options becomes the options of the record's fields.

    kinds: of source; options that have a meaning for none of them are left out.
    only:  the names of the fields that the command has, if not all.
    """
    wanted = only.split()

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shown: list[inspect.Parameter] = []
        records: dict[str, tuple[type, list[Declared]]] = {}
        for parameter in inspect.signature(command).parameters.values():
            record = parameter.annotation
            if is_dataclass(record) and isinstance(record, type):
                known = [
                    each
                    for each in declared(record)
                    if set(each.option.inputs) & set(kinds) and (not wanted or each.name in wanted)
                ]
                records[parameter.name] = record, known
                shown += [_parameter(each, grouped=not wanted) for each in known]
            else:
                shown.append(parameter)

        @wraps(command)
        def run(**given: Any) -> None:
            for name, (record, known) in records.items():
                given[name] = record(**{each.name: _value(each, given.pop(each.name)) for each in known})
            command(**given)

        shown.sort(key=lambda parameter: parameter.name == "version")
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return run

    return decorate


def _parameter(each: Declared, grouped: bool) -> inspect.Parameter:
    """The option of a field. grouped: it stands in a group of its own in the help."""
    option = each.option
    flags = (each.flag, *([option.short] if option.short else []))
    told: dict[str, Any] = {"help": option.about, "rich_help_panel": option.group if grouped else None}
    if option.metavar:
        told["metavar"] = option.metavar
    kind = TYPES.get(each.type, list[str] | None) if each.type.startswith(REPEATED) else TYPES[each.type]
    if kind in (int, int | None):
        told["min"] = 1
    default = False if kind is bool else each.default if kind is int else None
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(*flags, **told)],
    )


def _value(each: Declared, given: Any) -> Any:
    """What the record holds for what was given."""
    if each.type == "bool":
        return not given if each.default else given
    if each.type.startswith(REPEATED):
        return tuple(given or ())
    return given
