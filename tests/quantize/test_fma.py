"""No kernel may round once where ggml rounds twice: no fused multiply-add in the machine code of any of them."""

import re

import numba
import numpy as np
import pytest
from llvmlite import binding

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows
from ggufsmith.quantize.cache import Kernel
from ggufsmith.quantize.kernels import floats

# x86: vfmadd132ps, vfnmsub231ss…; ARM: fmla, fmls, fmadd, fnmsub…
FUSED = re.compile(r"^\s+(v?fn?m(add|sub|la|ls)\w*)", re.MULTILINE)


def kernels() -> dict[str, Kernel]:
    found = {name: value for name, value in vars(floats).items() if isinstance(value, Kernel)}
    for name in rows.MODULES:
        codec = rows.codec_of(BY_NAME[name])
        for role in ("encode", "weighted", "decode"):
            if isinstance(getattr(codec, role), Kernel):
                found[f"{name} {role}"] = getattr(codec, role)
    return found


@pytest.mark.parametrize("name", kernels())
def test_no_fused_multiply_add(name: str) -> None:
    code = kernels()[name].assembly()
    assert re.search(r"^\s+(v?movups|ld[rp]|str)\b", code, re.MULTILINE), "this is not machine code"
    assert not FUSED.findall(code)


@pytest.mark.skipif(not binding.get_host_cpu_features().get("fma", False), reason="this CPU has no fused multiply-add")
def test_a_fused_multiply_add_would_be_found() -> None:
    @numba.njit(fastmath={"contract"})
    def fused(a, b, c):  # type: ignore[no-untyped-def]
        for i in range(a.size):
            c[i] = a[i] * b[i] + c[i]

    x = np.zeros(8, np.float32)
    fused(x, x, x)
    assert FUSED.findall(fused.inspect_asm(fused.signatures[0]))
