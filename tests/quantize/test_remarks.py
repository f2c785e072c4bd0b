"""What is said of outputs with which nothing is wrong: twins, new types, unusual names, no chat template."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import small_models as models

import checkpoints
from ggufsmith.pipeline.passes import Pass
from ggufsmith.quantize.remarks import no_template, other_endings, recent_types, same_files
from requesting import opened, request, run

TWINS = ("q4_K_M", "q4_K_L", "q5_K_M", "q5_K_L", "q8_0", "mxfp4_moe", "f16", "copy", "q4_0")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that fit no block of 256, and one matrix for embeddings and output: Q8_0 in every mixture."""
    sizes = {"hidden_size": 160, "num_attention_heads": 5, "num_key_value_heads": 1}
    return checkpoints.write("qwen2", tmp_path_factory.mktemp("m") / "Narrow", tie_word_embeddings=True, **sizes)


def planned(path: Path, *recipes: str, **options: object) -> Pass:
    with opened(request(path, *recipes, **options)) as made:
        return made


# ---- files that are the same ----


def test_twins_are_named_and_nothing_else_is(narrow: Path, tmp_path: Path) -> None:
    """Against the files themselves."""
    asked = request(narrow, *TWINS, outdir=tmp_path)
    run(asked)
    outputs = planned(narrow, *TWINS, outdir=tmp_path).outputs
    content = {output.path.name: output.path.read_bytes() for output in outputs}
    tensors = {output.path.name: content[output.path.name][len(output.shards.whole.header) :] for output in outputs}
    wanted = {
        (a, b): "be byte-identical" if content[a] == content[b] else "byte-identical tensors"
        for a, b in combinations(content, 2)
        if tensors[a] == tensors[b]
    }
    assert len(wanted) == 3
    said = list(same_files(outputs))
    assert len(said) == len(wanted)
    for (a, b), what in wanted.items():
        assert any(text.startswith(f"{a} and {b} will ") and what in text for text in said)


def test_the_same_recipe_with_other_importance_is_another_file(tmp_path: Path) -> None:
    """As two passes plan them."""
    path = models.write_model(tmp_path / "Tiny-F16.gguf")
    imatrix = models.write_imatrix(tmp_path / "i", models.importance(models.arrays()))
    (plain,) = planned(path, "q4_0").outputs
    (weighted,) = planned(path, "q4_0", imatrix=imatrix).outputs
    (again,) = planned(path, "q4_0", imatrix=imatrix).outputs
    (float_plain,), (float_weighted,) = planned(path, "f32").outputs, planned(path, "f32", imatrix=imatrix).outputs
    assert not list(same_files([plain, weighted]))
    assert len(list(same_files([plain, plain]))) == 1
    assert len(list(same_files([weighted, again]))) == 1
    assert len(list(same_files([float_plain, float_weighted]))) == 1, "importance has no part in F32"


# ---- the others ----


def test_types_that_old_runtimes_refuse(narrow: Path, tmp_path: Path) -> None:
    model = checkpoints.write("llama", tmp_path / "Tiny")
    outputs = planned(model, "q1_0", "q2_0", "nvfp4", "q4_K_M", "iq4_xs", "tq2_0").outputs
    said = list(recent_types(outputs))
    assert [text.split(" ")[0] for text in said] == ["Tiny-Q1_0.gguf", "Tiny-Q2_0.gguf", "Tiny-NVFP4.gguf"]
    assert "Q2_0, which needs a recent llama.cpp" in said[1]


@pytest.mark.parametrize(("name", "told"), [("my", True), ("my.bin", True), ("my.gguf", False), ("my.GGUF", False)])
def test_names_without_the_ending(narrow: Path, tmp_path: Path, name: str, told: bool) -> None:
    outputs = planned(narrow, outfile=tmp_path / name).outputs
    assert len(list(other_endings(outputs))) == told
    assert not list(other_endings(planned(narrow, "q8_0", "q4_0").outputs))


def test_models_without_a_chat_template(tmp_path: Path) -> None:
    folder = checkpoints.write("qwen3", tmp_path / "Tiny")
    assert not list(no_template(planned(folder, "q8_0", "f16").outputs))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (text,) = no_template(planned(folder, "q8_0", "f16").outputs)
    assert "no chat template" in text
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}', encoding="utf-8")
    (folder / "modules.json").write_text(
        '[{"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]', encoding="utf-8"
    )
    assert not list(no_template(planned(folder).outputs)), "it embeds"


def test_the_pass_says_it(narrow: Path, tmp_path: Path) -> None:
    """Of folders and of files."""
    for source in (narrow, tmp_path / "Narrow-F16.gguf"):
        made = planned(source, "q4_K_M", "q4_K_L", outdir=tmp_path)
        assert any("will be byte-identical" in note for note in made.notes)
        run(request(narrow, outdir=tmp_path))
