"""Blocks that ggml made (golden.json, written by golden_make.py): the same bytes and numbers from our kernels."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.formats import format_of
from ggufsmith.quantize import rows
from twins import slip

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))
X = np.frombuffer(bytes.fromhex("".join(GOLDEN["rows"])), np.float32).reshape(2, -1)
IMPORTANCE = np.frombuffer(bytes.fromhex(GOLDEN["importance"]), np.float32)


def blocks(name: str, mode: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(GOLDEN["blocks"][name][mode])), np.uint8).reshape(2, -1)


def test_every_type_is_here() -> None:
    assert set(GOLDEN["blocks"]) == set(rows.MODULES)


@pytest.mark.parametrize("mode", ["plain", "weighted"])
@pytest.mark.parametrize("name", GOLDEN["blocks"])
def test_bytes(name: str, mode: str) -> None:
    form = format_of(name)
    out = np.zeros((2, form.nbytes((X.shape[1],))), np.uint8)
    importance = IMPORTANCE if mode == "weighted" else None
    if GOLDEN["blocks"][name][mode] is None:
        with pytest.raises(ValueError, match=f"{name} cannot be encoded without"):
            rows.encode(form, X, out)
        return
    report = rows.encode(form, X, out, importance=importance)
    assert report == rows.Report()
    if name == "IQ3_S":
        out = slip(out, X)
    assert out.tobytes().hex() == blocks(name, mode).tobytes().hex()


@pytest.mark.parametrize("name", GOLDEN["blocks"])
def test_numbers(name: str) -> None:
    out = np.empty(X.shape, np.float32)
    rows.decode(format_of(name), blocks(name, "weighted"), out)
    assert hashlib.sha256(out.tobytes()).hexdigest() == GOLDEN["blocks"][name]["sha256 of the weighted blocks' float32"]
