"""Wheels that carry machine code: python tools/wheel.py [TARGET...]

A wheel for each target, in dist/, of what is committed; the targets are those of TARGETS, and without any the one for
this system. On Linux, one architecture compiles for the other, too. Two wheels of one commit are the same byte for
byte: their times are that of the commit.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD, DIST = ROOT / "build" / "wheel", ROOT / "dist"
X86, ARM = ("x86-64-v2", "x86-64-v3", "x86-64-v4"), ("arm64",)
# Target -> the platform tag of its wheel, and the levels of machine code in it (quantize/cpu.py).
TARGETS = {
    "linux-x86_64": ("manylinux_2_17_x86_64", X86),
    "linux-aarch64": ("manylinux_2_17_aarch64", ARM),
}


def here() -> str:
    """The target for this system."""
    arch = platform.machine().lower()
    name = f"linux-{arch}" if sys.platform == "linux" else arch
    if name not in TARGETS:
        TARGETS[name] = sysconfig.get_platform(), X86 if arch in ("x86_64", "amd64") else ARM
    return name


def run(*command: str | Path, **environment: str) -> str:
    """A command's output. CalledProcessError if it fails."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True
    )
    return done.stdout.decode("utf-8")


def pip_wheel(source: Path, folder: Path, tag: str = "") -> Path:
    """Build one wheel from a source tree."""
    shutil.rmtree(folder, ignore_errors=True)
    options = [f"--config-settings=--build-option=--plat-name={tag}"] if tag else []
    epoch = run("git", "log", "-1", "--format=%ct").strip()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "-w", folder, *options, source, SOURCE_DATE_EPOCH=epoch)
    (made,) = folder.glob("*.whl")
    return made


def build(target: str) -> Path:
    """The wheel for a target."""
    tag, levels = TARGETS[target]
    source, plain = BUILD / "source", BUILD / "plain"
    shutil.rmtree(BUILD, ignore_errors=True)
    source.mkdir(parents=True)
    archive = BUILD / "source.tar"
    run("git", "archive", "--output", archive, "HEAD")
    shutil.unpack_archive(archive, source)
    with zipfile.ZipFile(pip_wheel(source, plain)) as wheel:  # what the kernels are compiled from is as installed
        wheel.extractall(plain)
    shutil.rmtree(source / "build", ignore_errors=True)
    code = source / "quantize" / "machine-code"
    for level in levels:
        environment = {**os.environ, "PYTHONPATH": str(plain), "GGUFSMITH_CPU": level}
        command = (sys.executable, "-P", "-m", "ggufsmith.quantize.ahead", code)
        subprocess.run(list(map(str, command)), cwd=BUILD, env=environment, check=True)
    made = pip_wheel(source, BUILD / "made", tag)
    DIST.mkdir(exist_ok=True)
    return Path(shutil.copy(made, DIST))


def main() -> None:
    for target in sys.argv[1:] or [here()]:
        here()
        if target not in TARGETS:
            sys.exit(f"{target} is not one of {', '.join(TARGETS)}")
        made = build(target)
        print(f"{made.relative_to(ROOT)}: {made.stat().st_size} bytes")


if __name__ == "__main__":
    main()
