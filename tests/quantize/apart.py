"""Every kernel, compiled in a process of its own into one empty cache, as runs with different recipes leave it.

    python tests/quantize/apart.py FOLDER

FOLDER/cache becomes that cache; FOLDER/assembly.json gets the text of the machine code, by kernel.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path

from every_kernel import all_kernels


def environment(folder: Path) -> dict[str, str]:
    """What makes a process use the cache in this folder."""
    return dict.fromkeys(("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"), str(folder / "cache"))


def compile_one(name: str) -> tuple[str, str]:
    """The name, and the assembly. RuntimeError if the kernel was in the cache before."""
    return name, all_kernels()[name].assembly()


def main() -> None:
    """A new process for each kernel. Where there is a fork, all of them start in the same state."""
    folder = Path(sys.argv[1])
    os.environ.update(environment(folder))
    how = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(how).Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        found = dict(pool.imap_unordered(compile_one, all_kernels(), chunksize=1))
    (folder / "assembly.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
