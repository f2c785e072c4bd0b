"""What the other tests compare with leaves the process as it was, so that they pass in any order."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
from llama_models import logged

pytestmark = pytest.mark.conformance

LOOK = """
import importlib.util, sys
import foreign
from peft import import_utils as peft
from transformers.utils import import_utils as transformers

names = ("auto_gptq.nn_modules.qlinear.qlinear_cuda", "gptqmodel.utils.model_dequant", "awq.modules.linear.gemm",
         "awq.utils.packing_utils", "awq.modules.linear.gemv", "hqq.core.quantize")
for name in names:
    with foreign.module(name) as first:
        assert sys.modules[name] is first
    with foreign.module(name) as again:
        assert again is first
    assert name not in sys.modules
    assert importlib.util.find_spec(name.split(".")[0]) is None, name
assert not [name for name, module in sys.modules.items() if str(foreign.ORACLES) in repr(module)]
assert str(foreign.ORACLES) not in sys.path
for library in (peft, transformers):
    assert not library.is_gptqmodel_available() and not library.is_hqq_available(), library
"""


def test_libraries_of_other_quantizers_are_seen_only_while_they_are_used() -> None:
    subprocess.run([sys.executable, "-c", LOOK], cwd=Path(__file__).parent, check=True)


def test_the_log_goes_back_to_whoever_had_it() -> None:
    import llama_cpp

    def where() -> int | None:
        callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
        llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
        return ctypes.cast(callback, ctypes.c_void_p).value

    before = where()
    with logged():
        assert where() != before
    assert where() == before
