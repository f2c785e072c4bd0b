"""Models of transformers in memory, and the examples of docs/api.md that run a model."""

from pathlib import Path
from typing import Any

import pytest

import checkpoints
import ggufsmith
from documented import HEAVY, blocks

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3", "mixtral", "qwen3-moe"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_model_in_memory_gives_the_bytes_of_the_saved_one(kind: str, dtype: str, tmp_path: Path) -> None:
    """Tied embeddings, fused experts, a generation config: whatever saving changes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = checkpoints.write(kind, tmp_path / "source", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(source)
    saved = tmp_path / "Tuned"
    model.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    wanted: dict[str, Any] = {"recipes": "q4_K_M", "outtypes": "auto", "sync": False, "model_name": "Tuned"}
    ours = ggufsmith.convert(model, tokenizer=tokenizer, outdir=tmp_path / "memory", **wanted)
    theirs = ggufsmith.convert(saved, outdir=tmp_path / "disk", **wanted)
    for one, other in zip(ours.outputs, theirs.outputs, strict=True):
        assert Path(one.output[0]).read_bytes() == Path(other.output[0]).read_bytes()
    assert ours.input == [type(model).__name__]


def test_what_is_not_all_there_is_refused(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source = checkpoints.write("llama", tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))
    with pytest.raises(ggufsmith.Unsupported, match="not in the memory"):
        ggufsmith.convert(model, tokenizer=tokenizer, outdir=tmp_path / "out")
    with pytest.raises(ggufsmith.WrongArgument, match="no config of transformers"):
        ggufsmith.convert(torch.nn.Linear(2, 2), tokenizer=tokenizer)
    assert not (tmp_path / "out").exists()


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.write("qwen2", tmp_path / "Tiny-2M-Chat")
    words = (Path(__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    (tmp_path / "text.txt").write_text(words, encoding="utf-8")
    first, *_ = found = blocks("api.md")
    heavy = [block for block in found if HEAVY.search(block)]
    assert len(heavy) >= 2
    names: dict[str, object] = {}
    for block in (first, *heavy):
        exec(compile(block, "docs/api.md", "exec"), names)
    assert (tmp_path / "out" / "Tiny-Tuned-Q4_K_M.gguf").is_file()
    assert (tmp_path / "out" / "Tiny-2M-Chat-IQ4_XS.gguf").is_file()
    assert "Q4_K_M" in capsys.readouterr().out
