"""Every command and program that a model card shows, run.

Programs of Python run as they are, with llama-cpp-python; `hf` and `ggufsmith` too, against the hub on the loopback. Of
llama.cpp's programs, names and options are looked up in its sources. Ollama is not here: its Modelfile is looked at.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapters
import checkpoints
import ggufsmith
import hub_server
from ggufsmith.naming.cardfacts import Publisher
from ggufsmith.naming.filecard import card_of
from needed import REFERENCE, need

pytestmark = pytest.mark.conformance

REPO = "me/Tiny-GGUF"
KINDS = ("chat", "completion", "embedding", "adapter", "shards")


def write_model(kind: str, home: Path) -> list[Path]:
    """Files of this kind in an empty folder."""
    folder = checkpoints.write("qwen3" if kind == "embedding" else "qwen2", home / "Tiny", num_hidden_layers=2)
    out = home / "out"
    if kind == "completion":
        path = folder / "tokenizer_config.json"
        path.write_text(
            re.sub(r'"chat_template": "(\\.|[^"])*",?', "", path.read_text(encoding="utf-8")), encoding="utf-8"
        )
    if kind == "embedding":
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}', encoding="utf-8")
        modules = '[{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]'
        (folder / "modules.json").write_text(modules, encoding="utf-8")
    if kind == "adapter":
        adapters.write(folder, home / "mine")
        ggufsmith.convert(home / "mine", outdir=out, sync=False)
        ggufsmith.convert(folder, outfile=out / "base.gguf", sync=False)
        return [path for path in out.iterdir() if path.name != "base.gguf"]
    size = {"split_max_tensors": 10} if kind == "shards" else {}
    ggufsmith.convert(folder, recipes="q8_0", outdir=out, sync=False, **size)
    return sorted(out.iterdir())


def blocks(card: str) -> list[tuple[str, str]]:
    """(language, code) of everything that is to be run."""
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[hub_server.Hub]:
    (tmp_path / "hub").mkdir()
    with hub_server.serving(tmp_path / "hub") as hub:
        yield hub


@pytest.mark.parametrize("published", [False, True], ids=["local", "published"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_a_card_shows_works(kind: str, published: bool, hub: hub_server.Hub, tmp_path: Path) -> None:
    files = write_model(kind, tmp_path)
    card = card_of(files, Publisher(REPO if published else None), digest=None)
    cwd = files[0].parent
    if published:
        place = hub.root / REPO / (files[0].name[: -len("-00001-of-00003.gguf")] if kind == "shards" else "")
        place.mkdir(parents=True)
        for path in files:
            path.rename(place / path.name)  # so that only what is downloaded is there
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    for language, code in blocks(card):
        if language == "python":
            run([sys.executable, "-c", code], cwd, environment)
            continue
        for line in code.splitlines():
            run_line(line, cwd, environment, hub)


def run(words: list[str], cwd: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


def run_line(line: str, cwd: Path, environment: dict[str, str], hub: hub_server.Hub) -> None:
    """One line of a shell, as far as there is what runs it."""
    program, *words = shlex.split(line)
    if program == "hf":
        run(["sh", "-c", line], cwd, environment)
        assert list(cwd.rglob("*.gguf"))
    elif program == "ggufsmith":
        module = "import sys; from ggufsmith.cli.app import main; main()"
        run([sys.executable, "-c", module, *words], cwd, environment)
    elif program == "printf":
        run(["sh", "-c", line], cwd, environment)
        for each in (cwd / "Modelfile").read_text(encoding="utf-8").splitlines():
            key, path = each.split(" ", 1)
            assert key in ("FROM", "ADAPTER") and (cwd / path).is_file()
    elif program == "ollama":
        known = r"(create my-model -f Modelfile|run my-model|run hf\.co/me/Tiny-GGUF:(\w+))"
        found = re.fullmatch(known, " ".join(words))
        assert found, line
        assert not found[2] or list((hub.root / REPO).glob(f"*-{found[2]}.gguf")), "no such tag"
    elif program == "pip":
        assert words == ["install", "huggingface_hub"]
    else:
        check_llama(program, words, cwd)


def check_llama(program: str, words: list[str], cwd: Path) -> None:
    """The program is built by llama.cpp, has these options, and the files are there."""
    need("tools")
    lists = [path.read_text(encoding="utf-8") for path in (REFERENCE / "tools").rglob("CMakeLists.txt")]
    folder = program.removeprefix("llama-")
    named = (rf"TARGET {program}\b", rf"add_subdirectory\({folder}\)")
    assert any(re.search(each, text) for each in named for text in lists), program
    arguments = (REFERENCE / "common" / "arg.cpp").read_text(encoding="utf-8")
    for word in words:
        if word.startswith("-"):
            assert f'"{word}"' in arguments, word
        elif word.endswith(".gguf"):
            assert (cwd / word).is_file(), word
