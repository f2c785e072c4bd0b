"""The documents are true: links lead somewhere, options exist, commands and examples are read as they stand."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import docstrings
import messages
import product
from ggufsmith.cli.app import app
from ggufsmith.convert.batch.schema import MODELS, OUTPUT, TABLES
from ggufsmith.quantize.recipes.files import recipe_of

ROOT = product.ROOT
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # of a group
PROGRAMS = {"gguf-convert": ["convert"], "gguf-quant": ["quant"], "ggufsmith": []}
# Options of other programs, and of benchmarks, that the documents mention.
FOREIGN = {
    "--embeddings",
    "--image",
    "--in-file",
    "--no-nanny",
    "--nthreads",
    "--pooling",
    "--reranking",
    "--spec-type",
}
FOREIGN |= {
    option
    for script in (ROOT / "tests" / "bench").glob("*.py")
    for option in re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8"))
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def links(name: str) -> Iterator[str]:
    """The targets of the links of a page, without those to the web."""
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if not re.match(r"[a-z]+:", target):
            yield target


def heading_ids(text: str) -> set[str]:
    """What links to the headings of a page end in, as GitHub makes it."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+?) *$", text, re.MULTILINE)
    }


def code(name: str) -> list[str]:
    """The blocks of code of a page that are set off by four spaces."""
    return [
        re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in re.findall(r"(?:^ {4}.*\n)+", read(name), re.M)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    for target in links(name):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), f"{name} links to {target}, which does not exist"
        if anchor:
            assert anchor in heading_ids(path.read_text(encoding="utf-8")), f"{name} links to {target}: no such heading"


def test_every_page_is_in_the_index() -> None:
    index = {(ROOT / "docs" / target).resolve() for target in links("docs/README.md")}
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and page not in index]
    assert not missing, f"docs/README.md has no link to {missing}"
    assert "docs/README.md" in set(links("README.md"))


def test_the_readme_names_every_page_for_users() -> None:
    users = read("docs/README.md").partition("For users:")[2].partition("For reference:")[0]
    pages = {f"docs/{target}" for target in re.findall(r"\]\(([a-z]+\.md)\)", users)}
    assert len(pages) > 10
    assert pages <= {target.partition("#")[0] for target in links("README.md")}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("CONTRIBUTING.md", "CHANGELOG.md")])
def test_options_exist(name: str) -> None:
    known = {option for command in COMMANDS.values() for param in command.params for option in param.opts} | {"--help"}
    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", read(name)):
        assert option in known | FOREIGN, f"{name} mentions {option}, which no command has"


def command_lines(name: str) -> list[str]:
    """The lines of a page's code, and the code inside its sentences, that run one of our programs."""
    lines = [line.partition("  #")[0].strip() for block in code(name) for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", read(name))
    return [line for line in lines if line.split(" ")[0] in PROGRAMS and " " in line]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("docs/cli.md", "CHANGELOG.md")])
def test_commands_are_read_as_they_stand(name: str) -> None:
    """As far as the parser goes."""
    for line in command_lines(name):
        program, *words = shlex.split(line, comments=True)
        command, *arguments = [*PROGRAMS[program], *words]
        if "--version" in words:
            continue
        assert command in COMMANDS, f"{name}: {line}"
        if arguments:
            assert COMMANDS[command].make_context(command, arguments), f"{name}: {line}"


def test_there_are_commands() -> None:
    assert len([line for name in NAMES for line in command_lines(name)]) > 40


def test_the_examples_of_files_are_read(tmp_path: Path) -> None:
    recipes = [block for block in code("docs/quantizing.md") if "[[rule]]" in block]
    jobs = [block for block in code("docs/batch.md") if "[[model]]" in block]
    assert recipes and jobs
    for block in recipes:
        (tmp_path / "mine.toml").write_text(block, encoding="utf-8")
        assert recipe_of("mine.toml", tmp_path).overrides
    for block in jobs:
        job = tomllib.loads(block)
        assert job.pop("output") and OUTPUT
        assert job.keys() <= {*TABLES, "defaults", "sets", "model"}
        assert all(model.keys() <= MODELS.keys() for model in (job["defaults"], *job["model"]))


def test_every_benchmark_has_its_place() -> None:
    text = (ROOT / "tests" / "bench" / "all.py").read_text(encoding="utf-8")
    (names,) = re.findall(r"^NAMES = \((.*?)\)$", text, re.MULTILINE | re.DOTALL)
    pages = read("docs/benchmarks.md") + read("docs/quality.md")
    assert re.findall(r'"(\w+)"', names)
    for name in re.findall(r'"(\w+)"', names):
        assert pages.count(f"<!-- bench:{name} -->") == pages.count(f"<!-- /bench:{name} -->") == 1, name
        assert (ROOT / "tests" / "bench" / f"{name}.py").is_file()


SOURCE = '''
"""A docstring."""
from errors import Failure
class Usage(Failure):
    code = 2
def command(x: Annotated[int, Option(help="Number of threads.")]) -> None:
    """Do it."""
    guarded(lambda: None)
def check(name, notes):
    """Not shown."""
    notes.append(f"{name} is left out, which is said")
    yield "size", f"{name} bytes in all"
    raise Usage(f"{name} is wrong", where=f"file {name}", fix="Choose one of " + ", ".join(KNOWN))
'''


def test_every_kind_of_message_is_found() -> None:
    module = product.Module("ggufsmith.cli.sample", Path("cli/sample.py"), ast.parse(SOURCE))
    finder = messages.Finder(module, messages.errors_of([module]))
    finder.walk(module.tree)
    assert {(message.kind, message.text) for message in finder.found} == {
        ("help", "Number of threads."),
        ("command", "Do it."),
        ("text", "{name} is left out, which is said"),
        ("label", "size"),
        ("text", "{name} bytes in all"),
        ("error", "{name} is wrong"),
        ("where", "file {name}"),
        ("fix", "Choose one of"),
    }


def test_the_script_that_prints_messages_reads_the_whole_product() -> None:
    found = {message.kind for message in messages.messages()}
    assert found == set(messages.KINDS)


def test_names_without_a_docstring_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = '''
"""The module."""
class Base:
    """It is documented."""
    def run(self): """Runs."""
    def stop(self): ...
class Derived(Base):
    """As well."""
    def run(self): ...
    def stop(self): ...
    def _hidden(self): ...
def bare():
    def inner(): ...
'''
    module = product.Module("ggufsmith.sample", Path("sample.py"), ast.parse(source))
    monkeypatch.setattr(docstrings, "modules", lambda: [module])
    names = [line.rpartition(" ")[2] for line in docstrings.missing()]
    assert names == ["Base.stop", "Derived.stop", "bare"]


DEVELOPERS = ("docs/architecture.md", "docs/kernels.md", "CONTRIBUTING.md")


@pytest.mark.parametrize("name", DEVELOPERS)
def test_the_files_that_developers_are_sent_to_exist(name: str) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|toml|json))`", read(name))
    places = [path for path in named if path.split("/")[0] not in ("src", "conversion", "ggml") and "NAME" not in path]
    missing = [path for path in places if not (ROOT / path).exists() and not (ROOT / "docs" / path).exists()]
    assert places and not missing
