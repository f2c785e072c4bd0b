"""Hypothesis strategies that damage files: bytes anywhere, and values anywhere in a JSON tree."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, -1, 1, 2, 7, 31, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, -0.0]
TEXTS = [
    "",
    "\0",
    "../x",
    "/etc/passwd",
    "a" * 70,
    "\ud800",
    "龙",
    "\x1b[31m",
    "<s>",
    "{{ 7*7 }}",
    "null",
    "C:\\x",
    "model",
]
WEIRD: list[Any] = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"type": "x"},
    [1, "a"],
    float("nan"),
    float("inf"),
]
values = st.sampled_from([*NUMBERS, *TEXTS, *WEIRD])


@st.composite
def damaged_bytes(draw: st.DrawFn, whole: bytes, first: int = 0) -> bytes:
    """Some bytes from `first` on changed, a piece cut out, doubled, or the end cut off."""
    data = bytearray(whole)
    at = st.integers(first, max(first, len(whole) - 1))
    for _ in range(draw(st.integers(1, 4))):
        kind, where = draw(st.sampled_from(["byte", "byte", "number", "cut", "drop", "double"])), draw(at)
        if kind == "byte":
            data[where : where + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "number":
            size = draw(st.sampled_from([4, 8]))
            data[where : where + size] = (draw(st.sampled_from(NUMBERS[:14])) % 2 ** (8 * size)).to_bytes(
                size, "little"
            )
        elif kind == "cut":
            del data[where:]
        elif kind == "drop":
            del data[where : where + draw(st.integers(1, 40))]
        else:
            data[where:where] = data[where : where + draw(st.integers(1, 40))]
    return bytes(data)


@st.composite
def damaged_json(draw: st.DrawFn, tree: Any) -> bytes:
    """A document with one to three places changed, removed, added or moved; sometimes with bytes damaged on top."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        _damage(draw, tree)
    text = json.dumps(tree, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    extra = draw(st.sampled_from(["", "", "", "", "", "bytes", "nested", "twice", "bom"]))
    if extra == "bytes":
        return draw(damaged_bytes(text))
    if extra == "nested":
        return text[:-1] + b', "n": ' + b"[" * 100_000 + b"]" * 100_000 + text[-1:]
    if extra == "twice":
        return text[:-1] + b"," + text[1:]
    return b"\xef\xbb\xbf" + text if extra == "bom" else text


def _damage(draw: st.DrawFn, tree: Any) -> None:
    """Walk down at random, and change what is found there."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        inner = tree[key]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 4)):
            tree = inner
            continue
        action = draw(st.sampled_from(["change", "change", "change", "remove", "rename", "sibling"]))
        if action == "remove":
            del tree[key]
        elif action == "sibling":
            tree[key] = copy.deepcopy(tree[draw(st.sampled_from(keys))])
        elif action == "rename" and isinstance(tree, dict):
            tree[draw(st.sampled_from(TEXTS))] = tree.pop(key)
        else:
            tree[key] = copy.deepcopy(draw(values))
        return
