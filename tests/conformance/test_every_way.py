"""The models that are downloaded most, by every way to a file: split, resumed, streamed, in a job, with adapters."""

import ctypes
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_models import open_llama
from typer.testing import CliRunner

import hub_server
import tiny
import zoo
from ggufsmith.cli.app import app
from ggufsmith.container.errors import Unsupported
from ggufsmith.convert.batch.jobfile import read_job
from ggufsmith.convert.batch.run import BatchOptions, Watcher, run_job
from ggufsmith.convert.hub.download import streamed
from ggufsmith.convert.hub.huggingface import HuggingFace
from ggufsmith.convert.hub.names import HubModel
from ggufsmith.quantize.source import open_model
from requesting import request, run

pytestmark = pytest.mark.conformance

BIG = ("qwen3_5-vl", "qwen3_5-moe", "gemma4-e2b", "gemma4-26b", "gpt-oss", "ministral3", "qwen3-vl")
RECIPE = "q4_K_M"
JOB = 'output = "out"\n[defaults]\nrecipes = ["{recipe}"]\n[[model]]\nsource = "{source}"\n'


def contents(path: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """The tensors of a file, or of all its shards."""
    found = {}
    with open_model(path).files as files:
        for name, info in files.tensors.items():
            raw = bytearray(info.nbytes)
            files.read_into(info, 0, raw)
            found[name] = info.shape, info.format.name, bytes(raw)
    return found


@pytest.mark.parametrize("name", BIG)
def test_the_same_file_by_every_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hub" / "org" / "Tiny-Fixture"
    folder.mkdir(parents=True)
    zoo.write(name, folder, published=zoo.ZOO[name].two_spellings, wide=True, dtype="bfloat16")
    run(request(folder, RECIPE, outfile=tmp_path / "whole.gguf"))
    whole, expected = (tmp_path / "whole.gguf").read_bytes(), contents(tmp_path / "whole.gguf")

    said = CliRunner().invoke(
        app, ["convert", str(folder), "--recipe", RECIPE, "--dry-run", "-o", str(tmp_path / "no")]
    )
    assert said.exit_code == 0, said.output
    assert not (tmp_path / "no").exists()

    run(request(folder, RECIPE, outdir=tmp_path / "split", split_max_tensors=17))
    shards = sorted((tmp_path / "split").glob("*-of-*.gguf"))
    assert len(shards) > 1
    assert contents(shards[0]) == expected

    asked = request(folder, RECIPE, outfile=tmp_path / "resumed.gguf", resume=True)
    done = [0]

    def stop(weights: int) -> None:
        done[0] += 1
        if done[0] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(asked, stop)
    assert not (tmp_path / "resumed.gguf").exists()
    run(asked)
    assert (tmp_path / "resumed.gguf").read_bytes() == whole

    job, outcomes = tmp_path / "jobs.toml", []
    job.write_text(JOB.format(recipe=RECIPE, source=folder.as_posix()), encoding="utf-8")
    run_job(read_job(job, {}), BatchOptions(sync=False), Watcher(), outcomes)
    assert [outcome.status for outcome in outcomes] == ["done"]
    (made,) = (tmp_path / "out").rglob("*.gguf")
    assert contents(made) == expected

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with hub_server.serving(tmp_path / "hub") as hub:
        client = HuggingFace(endpoint=hub.url, cache=tmp_path / "cache")
        with streamed(HubModel("hf", "org/Tiny-Fixture"), client) as found:
            asked = request(found.folder, RECIPE, outfile=tmp_path / "streamed.gguf")
            run(asked, open_files=found.open_files)
    assert contents(tmp_path / "streamed.gguf") == expected


# -- adapters ---------------------------------------------------------------------------------------------------------

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj")
TARGETS = (*LINEAR, "gate_proj", "up_proj", "down_proj")


def adapted(model: Any, folder: Path) -> Any:
    """The model with an adapter on every matrix of its text part that peft knows a way to, saved in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    ends = "|".join(TARGETS)
    pattern = rf"^(?!.*(visual|vision|audio)).*\.({ends})$"
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=pattern))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    return tuned.eval()


def computed(path: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    """Logits of every position in llama.cpp."""
    import llama_cpp

    llama = open_llama(path)
    if adapter is not None:
        lora = llama_cpp.llama_adapter_lora_init(llama.model, os.fsencode(adapter))
        assert lora
        loras, factors = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
        assert llama_cpp.llama_set_adapters_lora(llama.ctx, loras, 1, factors) == 0
    llama.eval(ids)
    found = np.array(llama.scores[: len(ids)])
    llama.close()
    return found


@pytest.mark.parametrize("name", BIG)
def test_adapters(name: str, tmp_path: Path) -> None:
    """Merged, the model computes what peft computes; alone, llama.cpp does so with it, or we say why it cannot."""
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = zoo.write(name, folder)
    ids = np.random.default_rng(5).integers(3, 300, 32).tolist()
    tuned = adapted(model, tmp_path / "adapter")
    with torch.no_grad():
        expected = tuned(torch.tensor([ids])).logits[0].numpy()
    bound = max(zoo.ZOO[name].nmse, 1e-9) * (100 if zoo.ZOO[name].why else 1)  # tables hold here for other numbers

    def error(found: np.ndarray) -> float:
        return float(((found - expected) ** 2).sum() / (expected**2).sum())

    run(request(folder, outtype="f32", outfile=tmp_path / "base.gguf"))
    without = error(computed(tmp_path / "base.gguf", ids))
    assert without > 100 * bound
    run(request(folder, outtype="f32", outfile=tmp_path / "merged.gguf", lora=((tmp_path / "adapter", 1.0),)))
    together = error(computed(tmp_path / "merged.gguf", ids))
    print(f"{name}: without {without:.1e}, merged {together:.1e}")
    assert together < bound
    try:
        run(request(tmp_path / "adapter", outfile=tmp_path / "lora.gguf", base=folder))
    except Unsupported as error_of:
        print(f"{name}: {error_of}")
        assert "--lora" in str(error_of)
        return
    alone = error(computed(tmp_path / "base.gguf", ids, tmp_path / "lora.gguf"))
    print(f"{name}: beside it {alone:.1e}")
    assert alone < bound


# -- what is missing --------------------------------------------------------------------------------------------------


def test_all_that_is_missing_is_listed_before_anything_is_written(tmp_path: Path) -> None:
    """A vision tower, a part of the blocks for multi-token prediction, an expert of a stack."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    zoo.write("qwen3_5-moe-vl", folder)
    tiny.add_mtp(folder, 1)
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if ".visual." not in name}
    del tensors["mtp.layers.0.input_layernorm.weight"]
    del tensors[next(name for name in tensors if "layers.1.mlp.experts.2.down_proj" in name)]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(Unsupported) as caught:
        run(request(folder, RECIPE, outdir=tmp_path / "out", mmproj=True))
    also = "\n".join(caught.value.also)
    assert "no tensor of the vision encoder" in also
    assert "blk.4.attn_norm.weight: its source is missing" in also
    assert re.search(r"blk\.1\.ffn_down_exps\.weight: \d+ experts for \d+, missing \[2\]", also)
    assert not (tmp_path / "out").exists()
