"""The kernels of the arm64 wheel, run by an emulator, against those of this machine, byte for byte.

    python tools/arm.py [FORMAT...]

compares all formats, or those named ("plain" and "products", too), and a whole conversion. It needs Debian or Ubuntu on
x86-64 with qemu-user-static; Python and its libraries for arm64 come from the distribution, the packages from PyPI. The
emulator runs one process and compiles nothing; what it takes says nothing about speed.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import wheel

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "arm"
SYSTEM, SITE, CACHE = BUILD / "root", BUILD / "site", BUILD / "apt"
EMULATOR = "qemu-aarch64-static"
COMPARE = ROOT / "tests" / "arm" / "compare.py"
PACKAGES = """python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 zlib1g libexpat1
libssl3 libffi8 libbz2-1.0 liblzma5 libuuid1 libcrypt1""".split()
PLATFORMS = [f"--platform=manylinux_2_{n}_aarch64" for n in (17, 27, 28, 31, 34)] + ["--platform=manylinux2014_aarch64"]


def apt(folder: Path, *words: str) -> None:
    """apt-get for arm64, with a state of its own."""
    for name in ("lists/partial", "cache/archives/partial"):
        (CACHE / name).mkdir(parents=True, exist_ok=True)
    (CACHE / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "Dir::State": CACHE,
        "Dir::State::Lists": CACHE / "lists",
        "Dir::State::status": CACHE / "status",
        "Dir::Cache": CACHE / "cache",
        "Acquire::Languages": "none",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    subprocess.run(["apt-get", "-qq", *options, *words], cwd=folder, check=True)


def make_system() -> None:
    """Python for arm64, in a folder."""
    if (SYSTEM / "usr" / "bin" / "python3.11").exists():
        return
    packages = BUILD / "debs"
    packages.mkdir(parents=True, exist_ok=True)
    apt(packages, "update")
    apt(packages, "download", *PACKAGES)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, SYSTEM], check=True)


def make_site() -> None:
    """What ggufsmith needs, for arm64, at the versions that are installed here. Without Numba: nothing is compiled."""
    if SITE.exists():
        return
    wheels = BUILD / "wheels"
    listed = wheel.run(sys.executable, "-m", "pip", "freeze", "--exclude-editable").splitlines()
    wanted = "gguf huggingface-hub llvmlite numpy pyyaml rich safetensors sentencepiece tokenizers typer".split()
    versions = {line.partition("==")[0].lower().replace("_", "-"): line for line in listed}
    options = [*PLATFORMS, "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--dest", wheels)
    wheel.run(*pip, *options, *(versions[name] for name in wanted))
    unfinished = BUILD / "site.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for package in wheels.glob("*.whl"):
        with zipfile.ZipFile(package) as archive:
            archive.extractall(unfinished)
    unfinished.rename(SITE)


def install(target: str, site: Path) -> None:
    """Put the wheel of what is committed into a folder."""
    for old in [*site.glob("ggufsmith*")]:
        shutil.rmtree(old)
    site.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel.build(target)) as archive:
        archive.extractall(site)


def on_arm(*words: str | Path) -> None:
    """Run Python in the emulator."""
    home = BUILD / "home"
    environment = {"PYTHONPATH": str(SITE), "PYTHONNOUSERSITE": "1", "HOME": str(home), "PATH": os.environ["PATH"]}
    python = SYSTEM / "usr" / "bin" / "python3.11"
    subprocess.run([EMULATOR, "-L", SYSTEM, python, "-P", *words], env=environment, cwd=BUILD, check=True)


def here(*words: str | Path) -> None:
    """Run this Python with the same wheel's sources, and this checkout's kernels."""
    subprocess.run([sys.executable, *words], cwd=BUILD, check=True)


def compared(names: list[str]) -> list[str]:
    """What differs between the two machines, of digests."""
    given = BUILD / "inputs.npz"
    here(COMPARE, "inputs", given)
    here(COMPARE, "digests", given, BUILD / "here.json", *names)
    on_arm(COMPARE, "digests", given, BUILD / "arm.json", *names)
    ours, arms = (json.loads((BUILD / name).read_text(encoding="utf-8")) for name in ("here.json", "arm.json"))
    print(f"{len(ours)} comparisons")
    return [name for name in ours.keys() | arms.keys() if ours.get(name) != arms.get(name)]


def converted() -> list[str]:
    """The names of outputs of a conversion that differ."""
    model, recipe = BUILD / "tiny-llama", "q4_K_M"
    here(ROOT / "fixtures" / "make.py", model)
    words = ("-m", "ggufsmith.cli.app", "convert", model, "--recipe", recipe, "--no-sync", "--quiet", "-o")
    files = [BUILD / f"{machine}.gguf" for machine in ("here", "arm")]
    for run, file in zip((here, on_arm), files, strict=True):
        run(*words, file)
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    print(f"conversion to {recipe}: {' '.join(digests)}")
    return [recipe] if digests[0] != digests[1] else []


def main() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64" or not shutil.which("apt-get"):
        sys.exit("This needs Debian or Ubuntu on x86-64.")
    if not shutil.which(EMULATOR):
        sys.exit(f"This needs {EMULATOR}: apt-get install --no-install-recommends qemu-user-static")
    (BUILD / "home").mkdir(parents=True, exist_ok=True)
    make_system()
    make_site()
    install("linux-aarch64", SITE)
    different = compared(sys.argv[1:]) + converted()
    if different:
        sys.exit(f"arm64 and {platform.machine()} differ: {', '.join(sorted(different))}")
    print("arm64 and x86-64 give the same bytes")


if __name__ == "__main__":
    main()
