"""Records that are imported when their class is asked for: a conversion needs one of a hundred."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, Protocol, TypeVar


class OfClasses(Protocol):
    """What is found by the class that config.json names under `architectures`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names that config.json may have."""


R = TypeVar("R", bound=OfClasses)


class ByClass(Mapping[str, R], Generic[R]):
    """Class -> its record."""

    def __init__(self, package: str, modules: Mapping[str, str]) -> None:
        """modules: module of the package -> the classes, as one text, that its RECORDS are for."""
        self.package, self.modules = package, modules
        self.module_of = {name: module for module, names in modules.items() for name in names.split()}

    def of_module(self, module: str) -> tuple[R, ...]:
        """The records of one module."""
        found: tuple[R, ...] = import_module(f"{self.package}.{module}").RECORDS
        return found

    def records(self) -> tuple[R, ...]:
        """All records, in the order of their modules."""
        return tuple(record for module in self.modules for record in self.of_module(module))

    def __getitem__(self, name: str) -> R:
        return next(record for record in self.of_module(self.module_of[name]) if name in record.classes)

    def __contains__(self, name: object) -> bool:
        return name in self.module_of

    def __iter__(self) -> Iterator[str]:
        return iter(self.module_of)

    def __len__(self) -> int:
        return len(self.module_of)
