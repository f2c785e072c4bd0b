"""What each type would cost the predictions of a model, tensor by tensor: measured once, kept as JSON, used by budgets.

`calibrate.measure` makes such a table; this module only keeps it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.formats import BY_NAME
from ggufsmith.container.replace import replace_text
from ggufsmith.container.untrusted import expect, read_object

FORMAT, VERSION = "ggufsmith-sensitivity", 1


@dataclass(frozen=True)
class TensorSensitivity:
    """shape: slowest axis first. losses: nats per token that each type adds to the KL divergence, by its name."""

    shape: tuple[int, ...]
    losses: Mapping[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """tensors: by name; those that could not be measured are missing.

    effort: of the quantizer with which it was measured (see `calibrate.run`). tokens: of the text, and their SHA-256.
    """

    tensors: Mapping[str, TensorSensitivity]
    effort: str
    tokens: int
    sha256: str


def write_sensitivity(table: Sensitivity, path: Path) -> None:
    """Write it as JSON; see `replace_text`."""
    tensors = {name: {"shape": list(each.shape), "losses": dict(each.losses)} for name, each in table.tensors.items()}
    told = {"format": FORMAT, "version": VERSION, "effort": table.effort, "tokens": table.tokens}
    replace_text(path, json.dumps({**told, "sha256": table.sha256, "tensors": tensors}, indent=1) + "\n")


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what `write_sensitivity` wrote. Malformed for anything else; Failure if it cannot be read."""
    data = read_object(path)
    if data.get("format") != FORMAT or data.get("version") != VERSION:
        raise Malformed(
            "this is not a table of sensitivities",
            where=path,
            fix="`ggufsmith sensitivity MODEL` makes one.",
        )
    tensors = {}
    for name, entry in _object(data, "tensors", path).items():
        values = expect(entry, dict, where=path, key=name)
        shape = expect(values.get("shape"), list, where=path, key=f"{name}.shape")
        losses = _object(values, "losses", path, name)
        if not shape or not all(type(each) is int and each > 0 for each in shape):
            raise Malformed(f"{name} has the shape {shape}", where=path)
        for type_name, loss in losses.items():
            if type_name not in BY_NAME:
                raise Malformed(f"{name} has a loss for {type_name!r}, which is not a type", where=path)
            if type(loss) not in (int, float) or not math.isfinite(loss) or loss < 0:
                raise Malformed(f"{name} has the loss {loss!r} for {type_name}", where=path)
        tensors[name] = TensorSensitivity(tuple(shape), {each: float(loss) for each, loss in losses.items()})
    said = {key: expect(data.get(key), kind, where=path, key=key) for key, kind in KEYS.items()}
    return Sensitivity(tensors, **said)


KEYS: Mapping[str, type] = {"effort": str, "tokens": int, "sha256": str}


def _object(data: Mapping[str, Any], key: str, path: Path, of: str = "") -> Mapping[str, Any]:
    found: Mapping[str, Any] = expect(data.get(key), dict, where=path, key=f"{of}.{key}".lstrip("."))
    return found
