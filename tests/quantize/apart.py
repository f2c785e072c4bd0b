"""Every kernel that the cache lacks, compiled by all cores, each by one of several processes.

    python tests/quantize/apart.py

`make test` begins with it, so that nothing is compiled twice.
"""

from pathlib import Path

from every_kernel import all_kernels

from ggufsmith.quantize.cache import compile_all


def environment(folder: Path) -> dict[str, str]:
    """What makes a process use the cache in this folder."""
    return dict.fromkeys(("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"), str(folder / "cache"))


if __name__ == "__main__":
    compile_all(all_kernels().values())
