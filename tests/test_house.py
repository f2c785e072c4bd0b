"""The shape of the house: imports go down and in no circle, names are unique, files are small, start-up is light."""

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import product

ROOT = Path(__file__).resolve().parents[1]
# A package may import from packages with a lower number, and from itself.
FLOORS = {
    "cli": 8,
    "api": 7,
    "calibrate": 6,
    "evaluate": 5,
    "convert": 4,
    "tokenizer": 3,
    "quantize": 3,
    "pipeline": 2,
    "naming": 1,
    "container": 0,
}


def imports(path: Path) -> set[str]:
    """The packages of ggufsmith that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, f"{path}: relative import"
        parts = {name.split(".")[1] for name in names if name.startswith("ggufsmith.")}
        found |= {part if part in FLOORS else "api" for part in parts}
    return found


@pytest.mark.parametrize("package", FLOORS)
def test_imports_go_down_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for other in imports(path) - {package}:
            assert FLOORS[other] < FLOORS[package], f"{path.relative_to(ROOT)} imports ggufsmith.{other}"


def test_all_packages_are_installed() -> None:
    names = {package: f"ggufsmith.{package}" for package in FLOORS} | {"api": "ggufsmith"}
    assert set(names.values()) == product.PACKAGES.keys(), "FLOORS is not pyproject.toml's"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in FLOORS:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            name = ".".join((names[package], *folder.relative_to(ROOT / package).parts))
            assert f'"{name}"' in text, f"{name} is missing in pyproject.toml's packages"
    assert (ROOT / "api" / "py.typed").is_file(), "type checkers would ignore the types of all packages"


def told_by_the_system(call: ast.Call) -> str | None:
    """What is wrong with a call whose answer differs between Linux, macOS and Windows."""
    said = {keyword.arg for keyword in call.keywords}
    text = ast.unparse(call.func)
    short = text.rpartition(".")[2]
    words = [node.value for part in call.args for node in ast.walk(part) if isinstance(node, ast.Constant)]
    binary = any(word in ("rb", "wb", "xb", "r+b", "w+b") for word in words)
    if text == "np.prod":
        return "has 32 bits on Windows with NumPy 1; take math.prod"
    if short == "TemporaryDirectory" and "ignore_cleanup_errors" not in said:
        return "fails at its end where a virus scanner has a file of it open; pass ignore_cleanup_errors=True"
    if text in ("os.replace", "os.rename") or (short == "rename" and text != "rename"):
        return "is refused for a moment on Windows; take disk.rename"
    opens = text == "open" or (short == "open" and "." in text and text != "os.open" and "zipfile" not in text)
    if opens and not binary and "encoding" not in said and "buffering" not in said:
        return "takes the encoding of the system; state one"
    if "." in text and short in ("read_text", "write_text") and "encoding" not in said:
        return "takes the encoding of the system; state one"
    return None


def test_nothing_is_left_to_the_system() -> None:
    found = [
        f"{module.path}:{node.lineno}: {ast.unparse(node.func)} {fault}"
        for module in product.modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and (fault := told_by_the_system(node))
        if not (module.path.as_posix() == "container/disk.py" and ast.unparse(node.func) == "os.replace")
    ]
    assert not found, "\n".join(found)


MAX_LINES = 500


def imported(module: product.Module, names: set[str]) -> Iterator[str]:
    """The modules of the product that one imports anywhere in it, also when a function of it is called."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from [name for name in (whole, node.module) if name in names][:1]


def circles() -> set[frozenset[str]]:
    """The groups of modules each of which imports, through others, all the others of its group."""
    modules = {module.name: module for module in product.modules()}
    graph = {name: set(imported(module, modules.keys())) for name, module in modules.items()}
    reached: dict[str, set[str]] = {}
    for name in graph:
        found, waiting = set[str](), [name]
        while waiting:
            new = graph[waiting.pop()] - found
            found |= new
            waiting += new
        reached[name] = found
    return {
        frozenset(other for other in reached[name] if name in reached[other]) for name in graph if name in reached[name]
    }


def test_no_modules_import_each_other() -> None:
    found = [sorted(name.removeprefix("ggufsmith.") for name in circle) for circle in circles()]
    assert not found, f"these modules import each other; move what they share into a module below them: {found}"


def test_public_classes_have_names_of_their_own() -> None:
    places = defaultdict(list)
    for module in product.modules():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(f"{module.path}:{node.lineno}")
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, f"one name, several classes; name each after what it is: {twice}"


def test_helpers_of_tests_have_names_of_their_own() -> None:
    """They are imported by name alone, whatever folder they are in; scripts are not imported."""
    places = defaultdict(list)
    for folder in ("fixtures", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            script = path.parent.name in ("bench", "clients", "device", "arm")
            if not script and path.stem not in ("conftest", "__init__"):
                places[path.stem].append(str(path.relative_to(ROOT)))
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert not twice, f"one name, several modules: {twice}"


def test_files_are_small() -> None:
    for module in product.modules():
        lines = (ROOT / module.path).read_text(encoding="utf-8").count("\n")
        assert lines <= MAX_LINES, f"{module.path} has {lines} lines; split it by subject, at most {MAX_LINES}"


# Packages whose tests are elsewhere, and where. This list only gets shorter, until it is empty.
TESTED_ELSEWHERE = {
    "quantize/kernels": "quantize",
}


def test_every_package_has_a_folder_of_tests() -> None:
    folders = {(ROOT / module.path).parent.relative_to(ROOT).as_posix() for module in product.modules()}
    for folder in sorted(folders):
        tests = ROOT / "tests" / TESTED_ELSEWHERE.get(folder, folder)
        assert list(tests.glob("test_*.py")), f"{folder} has no tests in {tests.relative_to(ROOT)}"
    moved = [f for f in TESTED_ELSEWHERE if list((ROOT / "tests" / f).glob("test_*.py")) or f not in folders]
    assert not moved, f"these have their own folder of tests, or are gone: take them out of TESTED_ELSEWHERE: {moved}"


def test_modules_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their names alone, so that of two with one name the second is an error."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    counts = Counter(path.name for path in files)
    twice = sorted(path.relative_to(ROOT).as_posix() for path in files if counts[path.name] > 1)
    assert not twice, f"name each after its subject: {twice}"


def test_help_needs_nothing_heavy() -> None:
    """No timing here: what makes start-up slow is what is imported."""
    code = (
        "import sys; sys.argv = ['gguf-convert', '--help']\n"
        "from ggufsmith.cli.app import convert_main\n"
        "try: convert_main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'numba', 'gguf.constants', 'torch', 'transformers', 'tokenizers', 'sentencepiece',"
        " 'safetensors', 'pydantic', 'yaml', 'llvmlite', 'markdown_it', 'pygments'}\n"
        "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "gguf-convert ./TinyLlama-1.1B" in done.stdout


def test_the_changelog_knows_the_version() -> None:
    version = next(
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
        if line.startswith("version")
    )
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
