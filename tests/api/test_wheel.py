"""What is installed: `ggufsmith` and its packages, with types, from folders at the root of the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import product


def test_the_wheel_holds_the_package_and_works(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    expected = {module.name.replace(".", "/") for module in product.modules()}
    found = {name.removesuffix(".py").removesuffix("/__init__") for name in names if name.endswith(".py")}
    assert found == expected
    assert "ggufsmith/py.typed" in names
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import ggufsmith; print(ggufsmith.__file__)"
    )
    code += "; import ggufsmith.cli.app, ggufsmith.convert.open; assert callable(ggufsmith.convert)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).is_relative_to((tmp_path / "installed").resolve())
