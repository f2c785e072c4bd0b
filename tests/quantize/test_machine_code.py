"""The machine code of all kernels, each compiled in a process of its own: what its symbols are, that other processes
make the same, that all of them work together in one process, and that it holds no fused multiply-add.
"""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import objects
import pytest
from apart import environment
from every_kernel import all_kernels
from llvmlite import binding

HERE = Path(__file__).parent
# For the processes of these tests: what test_golden.py and its like import.
PATHS = [*map(str, (HERE, HERE.parent, HERE.parents[1] / "fixtures")), *filter(None, [os.environ.get("PYTHONPATH")])]
# x86: vfmadd132ps, vfnmsub231ss…; ARM: fmla, fmls, fmadd, fnmsub…
FUSED = re.compile(r"^\s+(v?fn?m(add|sub|la|ls)\w*)", re.MULTILINE)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that apart.py fills."""
    folder = tmp_path_factory.mktemp("apart")
    run([str(HERE / "apart.py"), str(folder)], {})
    return folder


def run(arguments: list[str], environment: dict[str, str], text: str = "") -> str:
    """Python's output. The tests' folders can be imported from."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *arguments],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(PATHS)},
        input=text,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-4000:]}"
    return done.stdout


def test_kernels_share_no_symbol(apart: Path) -> None:
    """What two object files define, only one of them gets: the other would run code that it was not compiled with."""
    owners: dict[str, list[str]] = {}
    cached = objects.cached_objects(apart)
    assert len(cached) == len(all_kernels())
    for name, (code, module) in cached.items():
        for symbol in objects.visible_symbols(code, module):
            owners.setdefault(symbol, []).append(name)
    assert {symbol: names for symbol, names in owners.items() if len(names) > 1} == {}
    functions = [symbol for symbol in owners if "NumbaEnv" not in symbol]
    assert len(functions) == 2 * len(cached), "of each kernel, itself and its wrapper for Python"


SAMPLE = ("kquants_min.decode_q4_k", "iq2.decode_iq2", "codes.scale_groups", "legacy.encode_q4_0", "iq3.decode_iq3")
COMPILED_HERE = """
import json, sys
import objects
from every_kernel import all_kernels
for name in json.load(sys.stdin):
    all_kernels()[name].compile()
"""


def test_every_process_makes_the_same_code(apart: Path, tmp_path: Path) -> None:
    """One after the other in one process: the same object files as each alone, and so the code that was checked."""
    run(["-c", COMPILED_HERE], environment(tmp_path), json.dumps(SAMPLE))
    here, there = objects.cached_objects(tmp_path), objects.cached_objects(apart)
    assert len(here) == len(SAMPLE)
    assert {name: hashlib.sha256(code).hexdigest() for name, (code, _) in here.items()} == {
        name: hashlib.sha256(there[name][0]).hexdigest() for name in here
    }


TOGETHER = """
import json, sys
import test_golden
from every_kernel import all_kernels
kernels = all_kernels()
for name in json.load(sys.stdin):
    kernels[name].compile()
for name in test_golden.GOLDEN["blocks"]:
    for mode in ("plain", "weighted"):
        test_golden.test_bytes(name, mode)
    test_golden.test_numbers(name)
print([name for name, kernel in kernels.items() if not kernel.cached])
"""


def orders() -> dict[str, list[str]]:
    names = sorted(all_kernels())
    shuffled = [random.Random(seed).sample(names, len(names)) for seed in range(4)]
    return {"sorted": names, "reversed": names[::-1], **{f"shuffled {i}": order for i, order in enumerate(shuffled)}}


@pytest.mark.parametrize("order", orders())
def test_kernels_of_many_processes_in_one(apart: Path, order: str) -> None:
    """Loaded in several orders, each of them gives ggml's bytes and numbers, and none is compiled."""
    assert run(["-c", TOGETHER], environment(apart), json.dumps(orders()[order])).strip() == "[]"


CROSSED = """
import sys
import numpy as np
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows
for name in sys.argv[1:]:
    form, x = BY_NAME[name], np.random.default_rng(5).standard_normal((32, 512)).astype(np.float32)
    out, back = np.empty((32, form.nbytes((512,))), np.uint8), np.empty_like(x)
    rows.encode(form, x, out, importance=np.linspace(0.5, 2, 512, dtype=np.float32))
    rows.decode(form, out, back)
    print(name, float(np.square(back - x).sum() / np.square(x).sum()))
"""


def test_two_runs_and_a_third_with_both(tmp_path: Path) -> None:
    """The way in which it went wrong: a recipe each, then one run for both. The numbers are those of a run alone."""
    one, other = (run(["-c", CROSSED, name], environment(tmp_path)) for name in ("IQ3_S", "IQ2_XXS"))
    assert run(["-c", CROSSED, "IQ3_S", "IQ2_XXS"], environment(tmp_path)) == one + other
    assert run(["-c", CROSSED, "IQ2_XXS", "IQ3_S"], environment(tmp_path)) == other + one


def test_no_fused_multiply_add(apart: Path) -> None:
    code = json.loads((apart / "assembly.json").read_text(encoding="utf-8"))
    assert set(code) == set(all_kernels())
    for name, text in code.items():
        assert re.search(r"^\s+(v?movups|movq|mov[lq]?|ld[rp]|str)\b", text, re.MULTILINE), f"{name}: no machine code"
        assert not FUSED.findall(text), name


@pytest.mark.skipif(not binding.get_host_cpu_features().get("fma", False), reason="this CPU has no fused multiply-add")
def test_a_fused_multiply_add_would_be_found() -> None:
    @numba.njit(fastmath={"contract"})
    def fused(a, b, c):  # type: ignore[no-untyped-def]
        for i in range(a.size):
            c[i] = a[i] * b[i] + c[i]

    x = np.zeros(8, np.float32)
    fused(x, x, x)
    assert FUSED.findall(fused.inspect_asm(fused.signatures[0]))
