"""Kernels as they are compiled."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from llvmlite import ir
from numba.core import cgutils

from ggufsmith.quantize import cpu
from ggufsmith.quantize.cache import READ_F32, WRITE_F32, kernel
from ggufsmith.quantize.compiler import vectors
from ggufsmith.quantize.signatures import INT, packer, read
from ggufsmith.quantize.simd import W, load, store


def fma(x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once where that is faster."""


@pytest.mark.skipif("fma" not in cpu.level().needs, reason="this level has no fused multiply-add")
def test_a_fused_multiply_add_is_refused() -> None:
    """The assembly of every kernel is looked at when it is compiled, for any level; here that of one that fuses."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(args[0].type, [args[0].type] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{W}f32"), args)

    vectors.define(fma, lambda x, y, z: x, emit, 3)

    @kernel(READ_F32, WRITE_F32)
    def fused(x: Any, out: Any) -> None:
        v = load(x, 0)
        store(out, 0, fma(v, v, v))

    with pytest.raises(RuntimeError, match=r"would be compiled with vfmadd"):
        fused.compile()


def test_a_kernel_that_returns_no_integer_is_refused() -> None:
    @kernel(READ_F32)
    def first(x: Any) -> Any:
        return x[0]

    with pytest.raises(TypeError, match="returns an integer or nothing"):
        first(np.zeros(1, np.float32))


def test_arrays_of_two_dimensions_numbers_and_their_results() -> None:
    @kernel(read(np.float32, 2), np.dtype(np.float32), np.dtype(np.bool_), INT, WRITE_F32)
    def picked(table: Any, factor: Any, negative: Any, row: Any, out: Any) -> Any:
        for i in range(out.size):
            out[i] = -table[row, i] * factor if negative else table[row, i] * factor
        return table.shape[0] * 1000 + table.shape[1]

    table, out = np.arange(15, dtype=np.float32).reshape(3, 5), np.empty(5, np.float32)
    assert picked(table, np.float32(0.5), True, 2, out) == 3005
    assert out.tolist() == [-5.0, -5.5, -6.0, -6.5, -7.0]
    assert picked(table, 2, False, 0, out) == 3005
    assert out.tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_too_few_and_too_many_arguments() -> None:
    pack = packer((READ_F32, INT))
    assert list(pack((np.zeros(3, np.float32), 7)))[1:] == [3, 7, 0]
    for given in ((np.zeros(3, np.float32),), (np.zeros(3, np.float32), 1, 2)):
        with pytest.raises(ValueError, match="zip"):
            pack(given)


def test_numba_is_imported_by_nothing_else() -> None:
    """Every kernel, and what the commands import to use it."""
    code = (
        "import pkgutil, sys; from importlib import import_module\n"
        "from ggufsmith.quantize import ahead, encoder, selftest; import ggufsmith.calibrate.encoder\n"
        "assert len(ahead.all_kernels()) > 60 and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
