"""config.json and its neighbours, with an account of which keys were used."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.values import FLOAT32_MAX, Value

MAX_BLOCKS = 4096
# Keys that count blocks, by which lists and loops are as long: n_layer, num_hidden_layers, num_nextn_predict_layers.
COUNTS = re.compile(r"(\w+_)?n(um)?_(\w+_)?(layer|block)s?|first_k_dense_replace")

# Where models that do more than text keep the config of the language model.
TEXT = ("text_config", "llm_config", "language_config")
THINKER = "thinker_config"  # around all that, in models that also speak


def of_thinker(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A config.json with the part of the model that writes on top, where others speak; else the same."""
    inner = values.get(THINKER)
    if not isinstance(inner, Mapping):
        return values
    around = {key: value for key, value in values.items() if key != THINKER}
    return {**around, **inner, "architectures": values.get("architectures")}


def text_part(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model inside one that does more; empty where there is none."""
    return next((values[name] for name in TEXT if isinstance(values.get(name), Mapping)), {})


class Config(Mapping[str, Any]):
    """A model's config.json, the text model's part of it on top, that remembers which keys were asked for.

    A key whose value is null counts as absent: that is how configs spell "default".
    """

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        values = of_thinker(values)
        merged = {**values, **text_part(values)}
        if "architectures" in values:
            merged["architectures"] = values["architectures"]
        self._values = {key: value for key, value in merged.items() if value is not None}
        self.path = path
        self.used: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        self.used.add(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def first(self, *names: str) -> Any:
        """The value of the first name present, None if there is none. All of them count as used."""
        self.used.update(names)
        return next((self._values[name] for name in names if name in self._values), None)

    def peek(self, name: str) -> Any:
        """The value of a key, None if there is none. It does not count as used."""
        return self._values.get(name)

    def integer(self, *names: str, default: int | None = None) -> int | None:
        """A whole number, or a list of one for all layers; Malformed names the key if it holds anything else."""
        value = self.first(*names)
        if isinstance(value, list) and value and value.count(value[0]) == len(value):
            value = value[0]
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise Malformed(f"{' or '.join(names)} must be a whole number, not {value!r}", where=self.path)
        if not -(1 << 63) <= value < 1 << 63:
            raise Malformed(f"{' or '.join(names)} is out of range: {value}", where=self.path)
        return value

    def number(self, *names: str, default: float | None = None) -> float | None:
        """A number that float32 can hold; Malformed names the key if it is anything else."""
        value = self.first(*names)
        if value is None:
            return default
        return as_number(value, " or ".join(names), self.path)

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object, empty if there is none; Malformed names the key if it is anything else."""
        value = self.first(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise Malformed(f"{name} must be an object, not {value!r}", where=self.path)
        return value

    def items_of(self, name: str, kind: type, count: int | None = None) -> list[Any]:
        """A list whose items are all of one type; Malformed names the key if it is anything else.

        count: how many there must be; a list may be longer. Empty if there is no list.
        """
        value = self.first(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise Malformed(f"{name} must be a list of {kind.__name__}, not {value!r:.80}", where=self.path)
        if count is not None and len(value) < count:
            raise Malformed(f"{name} has {len(value)} items for {count} layers", where=self.path)
        return value[:count]

    def numbers_of(self, name: str, count: int | None = None) -> list[float]:
        """A list of numbers that float32 can hold, as `items_of` has it."""
        items = self.items_of(name, object, count)
        return [as_number(item, f"{name}[{place}]", self.path) for place, item in enumerate(items)]

    def renamed(self, aliases: Mapping[str, str]) -> "Config":
        """The same config, with keys under the names that most models have for them; those that are there win.

        A name with a point in it is that of a key inside an object.
        """
        values = {aliases.get(key, key): value for key, value in self._values.items()}
        for place, usual in aliases.items():
            outer, _, inner = place.partition(".")
            within = self._values.get(outer)
            if inner and isinstance(within, Mapping) and within.get(inner) is not None:
                values[usual] = within[inner]
        return self._with({**values, **{key: value for key, value in self._values.items() if key not in aliases}}, ())

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Config":
        """The same config, with values for keys it leaves open."""
        return self._with({**defaults, **self._values}, defaults)

    def replaced(self, values: Mapping[str, Any]) -> "Config":
        """The same config, with these values instead; None takes a key out."""
        return self._with({**self._values, **values}, ())

    def _with(self, values: dict[str, Any], used: Iterable[str]) -> "Config":
        found = Config({}, self.path)
        found._values = {key: value for key, value in values.items() if value is not None}
        found.used = {*self.used, *used}
        return found

    @property
    def unused(self) -> tuple[str, ...]:
        """The keys that nobody asked for."""
        return tuple(key for key in self._values if key not in self.used)


def as_number(value: object, name: str, path: Path) -> float:
    """Malformed for what is no number, and for one that GGUF's float32 cannot hold: JSON here has NaN and Infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{name} must be a number, not {value!r}", where=path)
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
        raise Malformed(f"{name} must be a number that float32 can hold, not {value!r:.40}", where=path)
    return float(value)


def as_share(value: object, name: str, path: Path) -> float:
    """A part of a whole, such as of a head's dimensions. Malformed names the key if it is not a number of 0 to 1."""
    share = as_number(value, name, path)
    if not 0 <= share <= 1:
        raise Malformed(f"{name} must be 0 to 1, not {value!r}", where=path)
    return share


def check_counts(config: Config) -> None:
    """Malformed if a key counts more blocks than any model has, so that no list is made of them."""
    for key in filter(COUNTS.fullmatch, config):
        value = config.peek(key)
        for count in value if isinstance(value, list) else (value,):
            if isinstance(count, int) and count > MAX_BLOCKS:
                raise Malformed(f"{key} must be at most {MAX_BLOCKS}, not {count}", where=config.path)


def made(make: Callable[[Any], Value], value: Any, config: Config, name: str) -> Value:
    """The typed value. Malformed if a number of it does not fit: the keys of config.json that hold it, or else `name`.

    name: of the key that it is made for.
    """
    try:
        return make(value)
    except OverflowError:
        listed = value if isinstance(value, list | tuple) else [value]
        wrong = max((each for each in listed if isinstance(each, int)), key=abs, default=0)
        holding = [key for key, held in config.items() if held == wrong or (isinstance(held, list) and wrong in held)]
        what = f"{' and '.join(holding) or name} is {wrong}, which does not fit into the 32 bits that GGUF has for it"
        raise Malformed(what, where=config.path) from None
