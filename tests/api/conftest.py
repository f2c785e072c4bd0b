"""What the tests of this folder share."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import product

LEFT = (".*", "build", "dist", "tests", "__pycache__", "*.egg-info")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(product.ROOT, folder / "copy", ignore=shutil.ignore_patterns(*LEFT))
    build = "import setuptools.build_meta as build; build.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "copy", check=True, capture_output=True)
    (made,) = folder.glob("*.whl")
    return made
