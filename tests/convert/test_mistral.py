"""Mistral's own layout gives the tensors and keys of the Hugging Face form of the same weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import adapters
import checkpoints
import mistral
import tekken
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.reader import open_gguf
from requesting import plan, request, run

KINDS = ("mistral", "mixtral")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """With the one file of the vocabulary that both layouts have."""
    folder = tmp_path_factory.mktemp("models")
    found = {kind: checkpoints.write(kind, folder / kind, sliding_window=None) for kind in KINDS}
    for path in folder.glob("*/*"):
        if path.name not in ("config.json", "model.safetensors", "tokenizer.model"):
            path.unlink()
    return found


def own(models: dict[str, Path], folder: Path, kind: str = "mistral", **options: Any) -> Path:
    shutil.copytree(models[kind], folder)
    mistral.rewrite(folder, **options)
    return folder


def file_of(folder: Path, output: Path, **options: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    run(request(folder, outfile=output, **options))
    with open_gguf(output) as gguf:
        data = output.read_bytes()
        tensors = {info.name: data[info.offset : info.offset + info.nbytes] for info in gguf.tensors.values()}
        # Which tokens begin and end a text only config.json says.
        ends = ("general.", "tokenizer.ggml.bos", "tokenizer.ggml.eos")
        return tensors, {key: value for key, value in gguf.metadata.items() if not key.startswith(ends)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shards", "version"), [(1, ""), (3, ".v3")])
def test_the_same_tensors_and_keys(
    tmp_path: Path, models: dict[str, Path], kind: str, shards: int, version: str
) -> None:
    folder = own(models, tmp_path / "own", kind, shards=shards, version=version)
    tensors, keys = file_of(folder, tmp_path / "own.gguf")
    expected, expected_keys = file_of(models[kind], tmp_path / "hf.gguf")
    assert tensors == expected
    assert keys == expected_keys


def test_an_adapter_of_the_hugging_face_form_merges(tmp_path: Path, models: dict[str, Path]) -> None:
    adapters.write(models["mistral"], tmp_path / "lora", targets=adapters.ALL)
    folder = own(models, tmp_path / "own")
    lora = ((tmp_path / "lora", 1.0),)
    ours = file_of(folder, tmp_path / "own.gguf", lora=lora, outtype="f32")[0]
    assert ours == file_of(models["mistral"], tmp_path / "hf.gguf", lora=lora, outtype="f32")[0]


def test_what_params_leave_open_is_said(tmp_path: Path, models: dict[str, Path]) -> None:
    for window, theta in ((None, 1e6), (4096, 1e4)):
        folder = own(models, tmp_path / f"{theta:g}", rope_theta=None, max_seq_len=None, sliding_window=window)
        planned = plan(request(folder))
        assert f"params.json has no rope_theta: {theta:g} is assumed, as mistral-inference does" in planned.notes
        assert "params.json does not state the context length: 32768 is assumed" in planned.notes
        assert planned.layout.metadata["llama.rope.freq_base"].data == theta
        assert planned.layout.metadata["llama.context_length"].data == 32768


def test_keys_without_a_meaning_are_named(tmp_path: Path, models: dict[str, Path]) -> None:
    folder = own(models, tmp_path / "own", something_new=3)
    assert any("something_new" in note for note in plan(request(folder)).notes)


def test_the_hugging_face_form_comes_first(tmp_path: Path, models: dict[str, Path]) -> None:
    shutil.copytree(models["mistral"], tmp_path / "both")
    folder = own(models, tmp_path / "own")
    for name in ("consolidated.safetensors", "params.json"):
        shutil.copyfile(folder / name, tmp_path / "both" / name)
    planned = plan(request(tmp_path / "both"))
    assert any("not from consolidated.safetensors" in note for note in planned.notes)


def refused(folder: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        plan(request(folder))
    return caught.value


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"lora": {"enable": True, "rank": 4, "scaling": 2.0}}, Unsupported, "LoRA adapter of mistral-finetune"),
        ({"quantization": {"qformat_weight": "int3"}}, Unsupported, "quantized in a way that is not known"),
        ({"vision_encoder": 3}, Malformed, "must be an object"),
        ({"multimodal": {"whisper_model_args": {}}}, Unsupported, "encoder of sound"),
        ({"yarn": {"factor": 4}}, Unsupported, "the same original_max_position_embeddings"),
        ({"llama_4_scaling": {"beta": 0.1}}, Unsupported, "the same original_max_position_embeddings"),
        ({"yarn": 4, "llama_4_scaling": {"beta": 0.1}}, Malformed, "must be an object"),
        ({"kv_lora_rank": 32, "moe": {"route_every_n": 2}}, Unsupported, "route_every_n is 2"),
        ({"model_type": "mamba"}, Unsupported, "'mamba'"),
        ({"use_biases": True}, Unsupported, "biases"),
        ({"sliding_window": [4096, None]}, Unsupported, "different sliding windows"),
        ({"dim": None, "n_heads": 0}, Malformed, "dim, n_heads must be positive"),
        ({"dim": "many"}, Malformed, "whole number"),
        ({"moe": 3}, Malformed, "must be an object"),
        ({"n_heads": 5, "n_kv_heads": 5}, Malformed, "is not 5 heads"),
    ],
)
def test_params_that_are_not_read(
    tmp_path: Path, models: dict[str, Path], changes: dict[str, Any], kind: type[Failure], message: str
) -> None:
    failure = refused(own(models, tmp_path / "own", **changes))
    assert isinstance(failure, kind)
    assert message in str(failure)


def test_an_adapter_of_mistral_finetune(tmp_path: Path, models: dict[str, Path]) -> None:
    folder = own(models, tmp_path / "own", lora={"enable": True, "rank": 4, "scaling": 2.0})
    (folder / "consolidated.safetensors").rename(folder / "lora.safetensors")
    assert "merge_lora" in str(refused(folder))


def test_a_tekken_vocabulary(tmp_path: Path, models: dict[str, Path]) -> None:
    folder = own(models, tmp_path / "own")
    (folder / "tokenizer.model").unlink()
    rows = json.loads((folder / "params.json").read_text(encoding="utf-8"))["vocab_size"]
    tekken.write(folder, rows)
    metadata = plan(request(folder)).layout.metadata
    assert metadata["tokenizer.ggml.pre"].data == "tekken"
    assert len(metadata["tokenizer.ggml.tokens"].data) == rows


def test_weights_without_params(tmp_path: Path, models: dict[str, Path]) -> None:
    folder = own(models, tmp_path / "own")
    (folder / "params.json").unlink()
    (folder / "config.json").write_text(json.dumps({"architectures": ["MistralForCausalLM"]}), encoding="utf-8")
    assert "its params.json is missing" in str(refused(folder))
