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
def cached() -> dict[str, objects.Object]:
    """What the cache has of every kernel. `apart.py` fills it, if `make test` has not."""
    run([str(HERE / "apart.py")], {})
    return objects.cached_objects()


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


def test_kernels_share_no_symbol(cached: dict[str, objects.Object]) -> None:
    """What two object files define, only one of them gets: the other would run code that it was not compiled with."""
    owners: dict[str, list[str]] = {}
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


def test_every_process_makes_the_same_code(cached: dict[str, objects.Object], tmp_path: Path) -> None:
    """One after the other in one process: the same object files as each alone, and so the code that was checked."""
    run(["-c", COMPILED_HERE], environment(tmp_path), json.dumps(SAMPLE))
    here = objects.objects_in(tmp_path)
    assert len(here) == len(SAMPLE)
    assert {name: hashlib.sha256(code).hexdigest() for name, (code, _) in here.items()} == {
        name: hashlib.sha256(cached[name][0]).hexdigest() for name in here
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
    """In the first two, each kernel is loaded before each other one and after it."""
    names = sorted(all_kernels())
    return {"sorted": names, "reversed": names[::-1], "shuffled": random.Random(0).sample(names, len(names))}


@pytest.mark.parametrize("order", orders())
@pytest.mark.usefixtures("cached")
def test_kernels_of_many_processes_in_one(order: str) -> None:
    """Loaded in several orders, each of them gives ggml's bytes and numbers, and none is compiled."""
    assert run(["-c", TOGETHER], {}, json.dumps(orders()[order])).strip() == "[]"


CROSSED = """
import hashlib, sys
import numpy as np
from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows
for name in sys.argv[1:]:
    random = np.random.default_rng(5)
    form, x = BY_NAME[name], random.standard_normal((32, 512)).astype(np.float32)
    out = random.integers(256, size=(32, form.nbytes((512,))), dtype=np.uint8)
    if name in ("Q4_0", "Q5_0"):  # those whose encoders are compiled in a second or two
        rows.encode(form, x, out)
    rows.decode(form, out, x)
    print(name, hashlib.sha256(out).hexdigest(), hashlib.sha256(x).hexdigest())
"""


def test_two_runs_and_a_third_with_both(tmp_path: Path) -> None:
    """The way in which it went wrong: a recipe each, then one run for both. The results are those of a run alone."""
    recipes = (["IQ3_S", "Q4_0"], ["IQ2_XXS", "Q5_0"])
    one, other = (run(["-c", CROSSED, *names], environment(tmp_path)) for names in recipes)
    assert run(["-c", CROSSED, *recipes[0], *recipes[1]], environment(tmp_path)) == one + other
    assert run(["-c", CROSSED, *recipes[1], *recipes[0]], environment(tmp_path)) == other + one


# They ask for it, with `multiply_add`; what they compute is nobody else's.
ASKING = ("tile_sums.", "descent.", "descent_lattice.")


def test_no_fused_multiply_add(cached: dict[str, objects.Object]) -> None:
    for name, (_, module) in cached.items():
        text = objects.assembly(module)
        assert re.search(r"^\s+(v?movups|movq|mov[lq]?|ld[rp]|str)\b", text, re.MULTILINE), f"{name}: no machine code"
        assert name.startswith(ASKING) or not FUSED.findall(text), name


@pytest.mark.skipif(not binding.get_host_cpu_features().get("fma", False), reason="this CPU has no fused multiply-add")
def test_a_fused_multiply_add_would_be_found() -> None:
    @numba.njit(fastmath={"contract"})
    def fused(a, b, c):  # type: ignore[no-untyped-def]
        for i in range(a.size):
            c[i] = a[i] * b[i] + c[i]

    x = np.zeros(8, np.float32)
    fused(x, x, x)
    assert FUSED.findall(fused.inspect_asm(fused.signatures[0]))
