"""The CPUs that there is machine code for, by level, and the level that this process uses.

A level is a set of instructions. Every level gives the same bytes; a higher one gives them sooner. The environment
variable GGUFSMITH_CPU names another level than the best one that the CPU has.
"""

import os
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache

from ggufsmith.container.errors import Unsupported

VARIABLE = "GGUFSMITH_CPU"
NATIVE = "native"


@dataclass(frozen=True)
class Level:
    """Instructions that machine code may use.

    arch:     LLVM's name of the architecture, as a target triple begins with it.
    lanes:    of a vector of 32-bit numbers: two registers' worth, which hides the latency of chains of additions.
    cpu:      LLVM's name of the CPU.
    features: beyond those of `cpu`, as LLVM takes them: "+this,-that".
    needs:    LLVM's names of the features that a CPU must have.
    """

    name: str
    arch: str
    lanes: int
    cpu: str
    features: str = ""
    needs: frozenset[str] = frozenset()


V2 = frozenset("cx16 popcnt sse3 ssse3 sse4.1 sse4.2".split())
V3 = V2 | set("avx avx2 bmi bmi2 f16c fma lzcnt movbe".split())
V4 = V3 | set("avx512f avx512bw avx512cd avx512dq avx512vl".split())
# The levels of x86-64 are those of its psABI. By itself LLVM uses only half of the registers' width on the fourth.
LEVELS: Mapping[str, Level] = {
    level.name: level
    for level in (
        Level("x86-64-v4", "x86_64", 32, "x86-64-v4", "-prefer-256-bit", V4),
        Level("x86-64-v3", "x86_64", 16, "x86-64-v3", "", V3),
        Level("x86-64-v2", "x86_64", 8, "x86-64-v2", "", V2),
        Level("arm64", "aarch64", 8, "generic", "", frozenset(["neon"])),
    )
}
ARCHES = {"amd64": "x86_64", "arm64": "aarch64"}  # what some systems call them


def host_arch() -> str:
    """LLVM's name of this machine's architecture."""
    name = os.uname().machine if sys.platform != "win32" else os.environ.get("PROCESSOR_ARCHITECTURE", "")
    return ARCHES.get(name.lower(), name.lower())


@cache
def host_features() -> Set[str]:
    """LLVM's names of the features that this CPU has; empty if they cannot be found out."""
    from llvmlite import binding

    try:
        return frozenset(name for name, there in binding.get_host_cpu_features().items() if there)
    except RuntimeError:
        return frozenset()


def has(arch: str, features: Set[str], level: Level) -> bool:
    """Whether a CPU of this architecture, with these features, can run the level's code."""
    if level.name == NATIVE:
        return True
    return level.arch == arch and (arch == "aarch64" or level.needs <= features)  # NEON is part of every 64-bit ARM


def best(arch: str, features: Set[str]) -> Level | None:
    """The best level of a CPU; None if there is none for it."""
    return next((level for level in LEVELS.values() if has(arch, features, level)), None)


def runs_here(level: Level) -> bool:
    """Whether this CPU has all that the level may use."""
    return has(host_arch(), host_features(), level)


def native() -> Level:
    """Exactly this CPU."""
    from llvmlite import binding

    features = host_features()
    lanes = 32 if "avx512f" in features else 16 if "avx2" in features else 8
    flags = ",".join(f"+{name}" for name in sorted(features))
    return Level(NATIVE, host_arch(), lanes, binding.get_host_cpu_name(), flags)


@cache
def level() -> Level:
    """The level that this process uses: what GGUFSMITH_CPU names, or the best that the CPU has.

    Unsupported if GGUFSMITH_CPU names no level.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted in LEVELS:
        return LEVELS[wanted]
    if wanted not in ("", NATIVE):
        fix = f"Set {VARIABLE} to one of {', '.join(LEVELS)} or {NATIVE}, or remove it from the environment."
        raise Unsupported(f"{wanted!r} does not name a CPU that ggufsmith knows", where=VARIABLE, fix=fix)
    return (None if wanted else best(host_arch(), host_features())) or native()


def check_runs_here() -> None:
    """Unsupported if GGUFSMITH_CPU names a level whose instructions this CPU does not have."""
    if not runs_here(level()):
        raise Unsupported(
            f"this CPU cannot run machine code for {level().name}",
            where=VARIABLE,
            fix=f"Remove {VARIABLE} from the environment, or set it to {NATIVE}.",
        )
