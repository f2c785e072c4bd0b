"""One rule for all commands: what is named and is not there is exit code 2, and the message says so."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app

# How each input can be named. MODEL is a folder and FILE a GGUF file that exist; all that is called absent does not.
LINES = """
convert absent/x/y
convert absent.gguf
convert MODEL --lora absent
convert MODEL --target absent
convert absent-adapter/x/y --base absent
convert MODEL --metadata absent.json
convert MODEL -r absent.toml
convert MODEL -r q4_0 --imatrix absent.gguf
convert MODEL -r q4_0 --tensor-type-file absent.txt
convert MODEL --match q4_0 --sensitivity absent.json
convert MODEL -o absent/x.gguf
quant absent.gguf -r q4_0
quant absent-00001-of-00002.gguf -r q4_0
quant FILE -r q4_0 --tokenizer absent
batch absent.toml
imatrix absent/x/y
imatrix --in absent.gguf -o new.gguf
sensitivity absent/x/y
recipes absent/x/y
inspect absent.gguf
inspect FILE absent.gguf
verify absent.gguf
verify FILE --source absent/x/y
verify FILE --record absent.json
split absent.gguf --split-max-tensors 3
merge absent-00001-of-00002.gguf
card absent.gguf
card FILE -o absent/README.md
push absent.gguf me/x
modelfile absent.gguf
modelfile FILE -o absent/Modelfile
which absent/x/y --memory 1G
which MODEL --memory 1G --table absent.csv
to-hf absent.gguf
eval absent.gguf --against MODEL
eval FILE --against absent/x/y
""".strip().splitlines()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    checkpoints.write("llama", home / "MODEL", num_hidden_layers=1)
    made = CliRunner().invoke(app, ["convert", str(home / "MODEL"), "-o", str(home / "FILE"), "--no-sync"])
    assert made.exit_code == 0, made.output
    return home


@pytest.mark.parametrize("line", LINES)
def test_what_is_not_there(line: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    before = sorted(home.rglob("*"))
    done: Result = CliRunner().invoke(app, line.split())  # type: ignore[assignment]
    said = " ".join(done.output.split())
    assert done.exit_code == 2, said
    assert "there is no such" in said or "does not exist" in said or "not a GGUF file or a folder" in said, said
    assert "absent" in said and sorted(home.rglob("*")) == before
