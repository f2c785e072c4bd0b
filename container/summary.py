"""What a GGUF file holds, as plain data: the JSON report of `ggufsmith inspect`, and the difference of two files."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.reader import TensorInfo
from ggufsmith.container.shards import GgufSet
from ggufsmith.container.text import printable
from ggufsmith.container.values import Value

SHORT = 8  # elements of an array that are shown
# Role <- tensor names, the first that matches. Names: gguf.constants, TENSOR_NAMES.
ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(pattern))
    for role, pattern in (
        ("embedding", r"(token_embd|position_embd|token_types|per_layer_token_embd)\."),
        ("output", r"(output|cls|cls\.output)\.(weight|bias)"),
        ("norm", r".*norm[^.]*\."),
        ("router", r".*(ffn_gate_inp|exp_probs_b)"),
        ("experts", r".*ffn_\w*_exps\."),
        ("shared experts", r".*ffn_\w*_(shexp|chexps)\."),
        ("attention", r".*\.attn_"),
        ("feed-forward", r".*\.ffn_"),
    )
)


def role(name: str) -> str:
    """What a tensor is for, by its name."""
    return next((role for role, pattern in ROLES if pattern.match(name)), "other")


def shown(value: Any, limit: int = 100) -> str:
    """One line for a terminal: what a file says cannot move the cursor, and is cut to `limit` characters."""
    if isinstance(value, str):
        text = printable(value[: limit + 1])
    elif isinstance(value, float):
        text = f"{value:.7g}"
    else:
        text = printable(json.dumps(value, ensure_ascii=False)[: limit + 1])
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: Value, limit: int | None = SHORT) -> Any:
    """A value as JSON has it; of an array the first `limit` elements."""
    data: Any = value.data
    if value.element is None:
        return _finite(data)
    items = data[:limit]
    return [_finite(item) for item in (items.tolist() if isinstance(items, np.ndarray) else items)]


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; their names stand for them."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def described(value: Value) -> dict[str, Any]:
    """Type and value of a key; of a long array the beginning and the length."""
    if value.element is None:
        return {"type": value.type.name.lower(), "value": plain(value)}
    size = len(value.data)  # type: ignore[arg-type]
    return {"type": f"{value.element.name.lower()}[{size}]", "length": size, "value": plain(value)}


def summary(model: GgufSet) -> dict[str, Any]:
    """Everything a header says; see `totals` for the numbers."""
    tensors = list(model.tensors.values())
    return {
        "files": [
            {"path": str(file.path), "bytes": file.size, "tensor_count": len(file.tensors)} for file in model.files
        ],
        "version": model.files[0].version,
        "alignment": model.alignment,
        "bytes": model.size,
        "header_bytes": sum(file.data_start for file in model.files),
        **totals(tensors),
        "roles": roles(tensors),
        "metadata": {key: described(value) for key, value in model.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "type": tensor.format.name,
                "bytes": tensor.nbytes,
                "offset": tensor.offset,
                **({"file": model.file_of(tensor).path.name} if len(model.files) > 1 else {}),
            }
            for tensor in tensors
        ],
    }


def totals(tensors: Sequence[TensorInfo]) -> dict[str, Any]:
    """Weights, bytes, bits per weight, and how many tensors and bytes each type has."""
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    size = sum(tensor.nbytes for tensor in tensors)
    types: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        entry = types.setdefault(tensor.format.name, {"tensors": 0, "weights": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["weights"] += math.prod(tensor.shape)
        entry["bytes"] += tensor.nbytes
    return {
        "tensor_count": len(tensors),
        "parameters": weights,
        "tensor_bytes": size,
        "bits_per_weight": 8 * size / weights if weights else None,
        "types": dict(sorted(types.items(), key=lambda item: -item[1]["bytes"])),
    }


def roles(tensors: Iterable[TensorInfo]) -> dict[str, dict[str, Any]]:
    """`totals` of the tensors of each role, the largest first."""
    groups: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        groups.setdefault(role(tensor.name), []).append(tensor)
    counted = {name: totals(group) for name, group in groups.items()}
    return dict(sorted(counted.items(), key=lambda item: -item[1]["tensor_bytes"]))


def difference(a: GgufSet, b: GgufSet) -> dict[str, Any]:
    """Keys and tensors that only one has, or that both have otherwise. The bytes of tensors are not compared."""

    def placed(model: GgufSet) -> Mapping[str, tuple[tuple[int, ...], str]]:
        return {tensor.name: (tensor.shape, tensor.format.name) for tensor in model.tensors.values()}

    left, right = placed(a), placed(b)
    changed_types = Counter(
        (left[name][1], right[name][1]) for name in left if name in right and left[name][1] != right[name][1]
    )
    tensors: dict[str, Any] = {
        "only_first": [name for name in left if name not in right],
        "only_second": [name for name in right if name not in left],
        "changed": {
            name: {"first": _placed(left[name]), "second": _placed(right[name])}
            for name in left
            if name in right and left[name] != right[name]
        },
    }
    return {
        "keys": {
            "only_first": [key for key in a.metadata if key not in b.metadata],
            "only_second": [key for key in b.metadata if key not in a.metadata],
            "changed": {
                key: _change(value, b.metadata[key])
                for key, value in a.metadata.items()
                if key in b.metadata and not _same(value, b.metadata[key])
            },
        },
        "tensor_counts": {kind: len(names) for kind, names in tensors.items()},
        "tensors": {
            "types": [{"first": x, "second": y, "tensors": n} for (x, y), n in changed_types.most_common()],
            **tensors,
        },
        "bytes": [a.size, b.size],
    }


def without_tensors(report: Mapping[str, Any]) -> dict[str, Any]:
    """A `summary` or a `difference` that lists no tensors; what they add up to stays."""
    tensors = report["tensors"]
    if isinstance(tensors, list):
        return {key: value for key, value in report.items() if key != "tensors"}
    return {**report, "tensors": {"types": tensors["types"]}}


def _same(a: Value, b: Value) -> bool:
    """Equal, or NaN in the same places."""
    return a == b or ((a.type, a.element) == (b.type, b.element) and plain(a, None) == plain(b, None))


def _change(a: Value, b: Value) -> dict[str, Any]:
    """Both values; of two arrays also where they first differ, and what stands there."""
    change = {"first": described(a), "second": described(b)}
    if a.element is None or a.element is not b.element:
        return change
    x, y = a.data, b.data
    at = _first_difference(x, y)  # type: ignore[arg-type]
    for side, data in (("first", x), ("second", y)):
        change[side]["value"] = plain(Value(a.type, data[at : at + 1], a.element))  # type: ignore[index]
    return {**change, "at": at}


def _first_difference(x: Sequence[Any] | NDArray[Any], y: Sequence[Any] | NDArray[Any]) -> int:
    return next((k for k, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))


def _placed(tensor: tuple[tuple[int, ...], str]) -> dict[str, Any]:
    return {"shape": list(tensor[0]), "type": tensor[1]}
