"""`ggufsmith modelfile`, and `--modelfile` after a run."""

import json
from pathlib import Path

import pytest
from commands import run

import adapters
import checkpoints
import seeing
from ggufsmith.cli.convert import convert
from ggufsmith.cli.modelfile import modelfile
from ggufsmith.cli.quant import quant
from ggufsmith.container.values import Metadata, boolean, string, strings, u32
from ggufsmith.evaluate.chat import recognised
from ggufsmith.modelfile import go_template

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"


def write_checkpoint(folder: Path, template: str | None, **sampling: float) -> Path:
    checkpoints.write("qwen2", folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("chat_template", None)
    path.write_text(json.dumps(config | ({"chat_template": template} if template else {})), encoding="utf-8")
    (folder / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    return folder


def test_a_modelfile_after_a_run(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Tiny-2M", CHATML, temperature=0.6, top_k=20, top_p=0.95)
    done = run(convert, folder, "-r", "q8_0", "-r", "q4_0", "--outdir", tmp_path / "out", "--modelfile", "--no-sync")
    assert done.exit_code == 0, done.output
    for name in ("Q8_0", "Q4_0"):
        text = (tmp_path / "out" / f"Tiny-2M-{name}.Modelfile").read_text(encoding="utf-8")
        assert f"FROM ./Tiny-2M-{name}.gguf\n" in text
        assert 'TEMPLATE """' in text and "<|im_start|>user\n{{ .Content }}<|im_end|>\n" in text
        assert 'PARAMETER stop "<|im_end|>"\n' in text
        assert "PARAMETER temperature 0.6\nPARAMETER top_k 20\nPARAMETER top_p 0.95\n" in text
    assert "chatml" in done.output


def test_a_model_that_sees(tmp_path: Path) -> None:
    seeing.write(tmp_path / "Sees")
    words = ("--mmproj", "--outdir", tmp_path / "out", "--no-sync")
    done = run(convert, tmp_path / "Sees", *words, "--modelfile")
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out").glob("*.Modelfile")
    assert path.name == "Sees-F16.Modelfile"
    both = "FROM ./Sees-F16.gguf\nFROM ./mmproj-Sees-F16.gguf\n"
    assert both in path.read_text(encoding="utf-8")
    model, projector = tmp_path / "out" / "Sees-F16.gguf", tmp_path / "out" / "mmproj-Sees-F16.gguf"
    again = run(modelfile, model, "--mmproj", projector, "-o", "-")
    assert again.exit_code == 0 and both in again.stdout
    wrong = run(modelfile, model, "--mmproj", model, "-o", "-")
    assert wrong.exit_code == 2 and "not a projector" in wrong.output
    alone = run(quant, projector, "-r", "q8_0", "--outdir", tmp_path / "new", "--modelfile", "--no-sync")
    assert alone.exit_code == 3 and "only a projector is written" in alone.output
    assert not list((tmp_path / "new").glob("*")), "nothing was done"


def test_a_missing_folder_is_found_before_anything_is_announced(tmp_path: Path) -> None:
    seeing.write(tmp_path / "Sees")
    for more in ((), ("--mmproj",), ("--mmproj", "--dry-run"), ("-r", "q8_0")):
        done = run(convert, tmp_path / "Sees", "-o", tmp_path / "absent" / "x.gguf", *more)
        assert done.exit_code == 2 and "output folder does not exist" in done.output
        assert "writing" not in done.output and "note" not in done.output


def made(tmp_path: Path, template: str | None) -> Path:
    folder = write_checkpoint(tmp_path / "Tiny-2M", template)
    assert run(convert, folder, "-o", tmp_path / "a.gguf", "--no-sync").exit_code == 0
    return tmp_path / "a.gguf"


def test_an_unknown_format_is_said(tmp_path: Path) -> None:
    file = made(tmp_path, "{{ messages[0]['content'] }} ~~>")
    done = run(modelfile, file, "--context", 4096)
    assert done.exit_code == 0 and "not known here" in " ".join(done.output.split())
    text = (tmp_path / "a.Modelfile").read_text(encoding="utf-8")
    assert "\nTEMPLATE" not in text and "# the format of the chat template is not known" in text
    assert text.endswith("PARAMETER num_ctx 4096\n")


def test_a_model_without_a_template_continues_a_text(tmp_path: Path) -> None:
    done = run(modelfile, made(tmp_path, None), "-o", "-")
    assert done.exit_code == 0 and 'TEMPLATE """{{ .Prompt }}"""' in done.stdout
    assert not (tmp_path / "a.Modelfile").exists()


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    base = made(tmp_path, CHATML)
    adapters.write(tmp_path / "Tiny-2M", tmp_path / "mine")
    assert run(convert, tmp_path / "mine", "-o", tmp_path / "b.gguf", "--no-sync").exit_code == 0
    refused = run(modelfile, tmp_path / "b.gguf")
    assert refused.exit_code == 2 and "--base" in refused.output
    done = run(modelfile, tmp_path / "b.gguf", "--base", base)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "b.Modelfile").read_text(encoding="utf-8")
    assert "FROM ./a.gguf\nADAPTER ./b.gguf\n" in text and "im_start" in text
    assert run(modelfile, base, "--base", base).exit_code == 2


def test_what_stands_elsewhere_is_named_by_its_path(tmp_path: Path) -> None:
    file = made(tmp_path, CHATML)
    (tmp_path / "sub").mkdir()
    assert run(modelfile, file, "-o", tmp_path / "sub" / "Modelfile").exit_code == 0
    assert f"FROM {file.as_posix()}\n" in (tmp_path / "sub" / "Modelfile").read_text(encoding="utf-8")


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = made(tmp_path, CHATML)
    (tmp_path / "a.Modelfile").write_text("FROM mine\n", encoding="utf-8")
    assert run(modelfile, file).exit_code == 6
    assert (tmp_path / "a.Modelfile").read_text(encoding="utf-8") == "FROM mine\n"
    folder, out = tmp_path / "Tiny-2M", tmp_path / "out"
    shards = run(convert, folder, "--outdir", out, "--split-max-tensors", "9", "--modelfile", "--no-sync")
    assert shards.exit_code == 3 and "several files" in shards.output
    assert not out.exists() or not list(out.iterdir())
    assert run(convert, folder, "--outdir", out, "--split-max-tensors", "9", "--no-sync").exit_code == 0
    first = min(out.iterdir())
    done = run(modelfile, first)
    assert done.exit_code == 3 and f"ggufsmith merge {first}" in done.output
    assert run(convert, folder, "--outdir", tmp_path / "v", "--vocab-only", "--no-sync").exit_code == 0
    assert run(modelfile, next((tmp_path / "v").iterdir())).exit_code == 2
    assert run(modelfile, tmp_path / "absent.gguf").exit_code == 2


@pytest.mark.parametrize(
    ("keys", "written"),
    [
        ({"tokenizer.ggml.add_bos_token": boolean(True)}, False),
        ({"tokenizer.ggml.add_bos_token": boolean(False)}, True),
        ({"tokenizer.ggml.model": string("llama")}, False),
        ({"tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("llama-bpe")}, False),
        ({"tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.pre": string("qwen2")}, True),
    ],
)
def test_the_first_token_is_written_only_if_nobody_else_adds_it(keys: Metadata, written: bool) -> None:
    template = "{{ bos_token }}<|start_header_id|>{{ role }}<|end_header_id|>"
    metadata: Metadata = {
        "tokenizer.ggml.tokens": strings(["<first>", "<last>"]),
        "tokenizer.ggml.bos_token_id": u32(0),
        "tokenizer.ggml.eos_token_id": u32(1),
        **keys,
    }
    assert go_template(recognised(template), metadata).startswith("<first>") == written
