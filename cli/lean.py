"""What keeps commands from importing what they do not need: half of the time of a short one would go there."""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# What typer imports for help as Markdown, and for tracebacks; ours is neither. They bring a parser and pygments.
UNUSED = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}
PLAIN: dict[Any, Any] = {str: str, Path: Path}
LISTS: dict[Any, Any] = {list[str]: str, list[Path]: Path}


def import_gguf_in_parts() -> None:
    """Let `gguf.constants` be imported without all else that the package `gguf` imports, which comes when it is used.

    Its reader, its vocabularies and its metadata bring sentencepiece, pydantic and a YAML parser.
    """
    spec = None if "gguf" in sys.modules else PathFinder.find_spec("gguf")
    if spec is not None and spec.loader is not None and spec.submodule_search_locations is not None:
        sys.modules["gguf"] = _unfinished(spec)


def _unfinished(spec: ModuleSpec) -> ModuleType:
    """A package that runs its own code when something other than one of its modules is asked of it."""
    module = ModuleType(spec.name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    module.__path__ = list(spec.submodule_search_locations or ())
    module.__package__ = spec.name

    def finish(name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # what the import system and others ask of every module
            raise AttributeError(name)
        if PathFinder.find_spec(f"{spec.name}.{name}", module.__path__):
            return import_module(f"{spec.name}.{name}")
        del module.__getattr__
        spec.loader.exec_module(module)  # type: ignore[union-attr]
        return getattr(module, name)

    module.__getattr__ = finish  # type: ignore[method-assign]
    return module


def leave_out(unused: Mapping[str, str]) -> None:
    """Let these modules be imported for one class each, without running their code before the class is used.

    unused: module in a package -> class.
    """
    for name, title in unused.items():
        if name not in sys.modules:
            package, _, last = name.rpartition(".")
            sys.modules[name] = _stand_in(name, title)
            setattr(import_module(package), last, sys.modules[name])


def _stand_in(name: str, title: str) -> ModuleType:
    module = ModuleType(name)

    def real(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if sys.modules.get(name) is module:
            del sys.modules[name]
        return getattr(import_module(name), attribute)

    def made(cls: type, *args: Any, **kwargs: Any) -> Any:
        return real(title)(*args, **kwargs)

    setattr(module, title, type(title, (), {"__new__": made}))
    module.__getattr__ = real  # type: ignore[method-assign]
    return module


class PlainValues:
    """Texts and paths as values of options. Others are left to typer, which has pydantic check them."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the command gets it."""
        many = param.multiple or param.nargs == -1
        if value is None:
            return () if many else None
        kind = param.type_descriptor.annotation
        if type(value) is int and kind is int:
            return value  # a default
        if not many and kind in PLAIN and _is_plain(value, PLAIN[kind]):
            return PLAIN[kind](value)
        if many and kind in LISTS and all(_is_plain(each, LISTS[kind]) for each in value):
            return [LISTS[kind](each) for each in value]
        param._runtime_param = None
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def _is_plain(value: Any, kind: Any) -> bool:
    """Whether a value is a text that needs no further look. That at a path is whether one that is there is readable."""
    if not isinstance(value, str) or (kind is Path and "\0" in value):
        return False
    return kind is str or os.access(value, os.R_OK) or not os.path.lexists(value)


def plain_values(param: Any) -> None:
    """Spare an option or argument pydantic, where typer would import it."""
    if getattr(param, "_runtime_param", 0) is None:
        param._runtime_param = PlainValues()
