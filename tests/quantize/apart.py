"""Every kernel that the cache lacks, compiled in a process of its own, as runs with different recipes leave the cache.

    python tests/quantize/apart.py

`make test` begins with it: so nothing is compiled twice, and all cores compile.
"""

import multiprocessing
import os
from pathlib import Path

from every_kernel import all_kernels

# Compiled before the others, with much of what they call: a process that forks has it, and so has each that it forks.
FIRST = "legacy.encode_q4_0"


def environment(folder: Path) -> dict[str, str]:
    """What makes a process use the cache in this folder."""
    return dict.fromkeys(("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"), str(folder / "cache"))


def compile_one(name: str) -> None:
    """Compile, or load from the cache."""
    all_kernels()[name].compile()


def main() -> None:
    """A new process for each kernel. Where there is a fork, all of them start in the same state, in which Numba alone
    would give the same names to different functions.
    """
    missing = [name for name, kernel in all_kernels().items() if not kernel.stored]
    if not missing:
        return
    compile_one(FIRST)
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(how).Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        pool.map(compile_one, missing, chunksize=1)


if __name__ == "__main__":
    main()
