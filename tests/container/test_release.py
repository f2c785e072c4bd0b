"""Which version runs."""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from ggufsmith.container import release


def installed(folder: Path, *names: str) -> ModuleType:
    """The module as it is when it is installed in a folder beside others of these names."""
    place = folder / "ggufsmith" / "container" / "release.py"
    place.parent.mkdir(parents=True)
    place.write_bytes(Path(release.__file__).read_bytes())
    for name in names:
        (folder / name).mkdir()
    spec = importlib.util.spec_from_file_location("release", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_that_of_the_distribution() -> None:
    assert release.own_version() == version("ggufsmith")


def test_it_is_in_the_name_of_a_folder(tmp_path: Path) -> None:
    beside = ("ggufsmith-9.10.dist-info", "ggufsmith_extra-3.dist-info", "numpy-2.0.dist-info")
    assert installed(tmp_path, *beside).own_version() == "9.10"


def test_two_folders_decide_nothing(tmp_path: Path) -> None:
    """An installation that was interrupted."""
    beside = ("ggufsmith-9.10.dist-info", "ggufsmith-9.11.dist-info")
    assert installed(tmp_path, *beside).own_version() == version("ggufsmith")
