"""Installs the programs that `make clients` lets read our files, and two published models, into build/clients.

    python tests/clients/install.py

Nothing is installed anywhere else. What cannot be installed is said, and left out by `check.py`, which says so again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import real_model

HERE = Path(__file__).resolve().parent
CLIENTS = HERE.parents[1] / "build" / "clients"
NPM, TOOLS, MODELS = CLIENTS / "npm", CLIENTS / "tools", CLIENTS / "models"
# Programs that judge GGUF files or the chat templates in them, each in a folder of its own.
LINTERS = ("modelvet==0.1.1", "ggufdoctor==0.3.0", "c4nary==0.3.1", "model-fingerprint==0.1.1", "glyphhound==0.1.0")
MISTRAL_RS = "mistralrs==0.9.5"  # a runtime in Rust
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
MINUTES = 20  # for each installation
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def browser() -> str | None:
    """The program of a Chromium, which no package of the registries that we use brings into a folder."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def run(*command: str | Path, cwd: Path | None = None) -> bool:
    """Whether a command ended well."""
    try:
        return subprocess.run(command, cwd=cwd, check=False, timeout=MINUTES * 60).returncode == 0
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return False
    except subprocess.TimeoutExpired:
        print(f"{command[0]}: did not end within {MINUTES} minutes")
        return False


def install_npm() -> bool:
    """Packages of npm, without scripts of theirs."""
    NPM.mkdir(parents=True, exist_ok=True)
    if not shutil.which("npm"):
        return False
    shutil.copy(HERE / "package.json", NPM / "package.json")
    return run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=NPM)


def install_tool(requirement: str) -> bool:
    """One program, with what it needs."""
    target = TOOLS / requirement.partition("==")[0]
    return target.is_dir() or run(*PIP, "install", "--target", target, requirement)


def install_model(name: str) -> bool:
    """The file of a published model."""
    MODELS.mkdir(parents=True, exist_ok=True)
    try:
        real_model.published(name, MODELS)
    except (OSError, subprocess.CalledProcessError) as error:
        print(error)
        return False
    return True


def main() -> None:
    missing = [] if install_npm() else ["the packages of npm"]
    missing += [each for each in (*LINTERS, MISTRAL_RS) if not install_tool(each)]
    missing += [name for name in real_model.REAL if not install_model(name)]
    if browser() is None:
        missing.append("Chromium, for wllama (install the package chromium of your system)")
    for each in missing:
        print(f"could not be installed: {each}")
    print(f"clients are in {CLIENTS}")


if __name__ == "__main__":
    main()
