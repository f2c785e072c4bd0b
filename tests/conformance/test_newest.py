"""Models that are compared less than lines of the zoo: bytes against llama.cpp's converter, and a load.

What llama.cpp computes is compared with transformers where both compute the same.
"""

from pathlib import Path
from typing import Any

import mtmd
import numpy as np
import pytest
import quantizer
import tokenizer_oracles as oracles
from llama_models import logits
from test_convert import PRE, ours, tensors
from test_kvcache import CONTEXTS, allocated
from test_zoo import same

import newest
import reference
from ggufsmith.calibrate.make import make_imatrix
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.convert.hf.run import ToHfJob, prepare
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.open import open_pass
from ggufsmith.convert.plan import make_plan
from ggufsmith.evaluate.backward import run_backward
from ggufsmith.evaluate.skeleton import build_skeleton
from ggufsmith.evaluate.variants import opened_model
from ggufsmith.kvcache import cache_bytes, cache_type
from ggufsmith.quantize.recipes.filetypes import FILE_TYPES
from requesting import request, run

pytestmark = pytest.mark.conformance

IDS = np.random.default_rng(5).integers(3, 300, 48).tolist()
SPELLINGS = [
    (name, published)
    for name, line in newest.NEWEST.items()
    if not line.logits
    for published in ((True,) if line.outer else (False, True)[: 1 + line.model.two_spellings])
]


# How llama.cpp's log says the sizes of caches and states.
SIZES = r"(?:llama_kv_cache|llama_memory_recurrent|llama_dsv4_comp_state): +(?:.*, )?size += +([\d.]+) MiB"


def alike(name: str, a: tuple[Any, ...], b: tuple[Any, ...], rounding: float = 1e-7) -> bool:
    """Whether two tensors are equal, but for the mean that is taken from Sarvam's biases of experts.

    torch adds up in another order, and of 16 bits, in 16 bits.
    """
    if name.endswith("exp_probs_b.bias") and a[:2] == b[:2]:
        one, other = (np.frombuffer(each[2], np.float32) for each in (a, b))
        return bool(np.allclose(one, other, rtol=0, atol=rounding * float(np.abs(other).max())))
    return same(name, a, b)


def theirs(name: str, folder: Path, path: Path, outtype: str = "f32") -> Gguf:
    """What llama.cpp's converter makes of a folder."""
    line = newest.NEWEST[name].model
    pre = PRE.get(line.vocabulary, "")
    options = {"pre": pre, "raw": True, "generic": line.generic}
    return open_gguf(reference.convert(folder, path, "--outtype", outtype, *line.options, **options))


def error(path: Path, model: Any, ids: list[int], context: int = 128) -> float:
    """Of the logits that llama.cpp computes, against transformers': normalised mean square."""
    import torch

    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    found = logits(path, ids, context)
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize("name", newest.NEWEST)
def test_bytes_of_the_converter_and_a_load(name: str, tmp_path: Path) -> None:
    line, folder = newest.NEWEST[name], tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write(name, folder)
    if line.packed:
        newest.pack_experts(folder)
        run(request(folder, "copy", outfile=tmp_path / "ours.gguf"))
        mine = open_gguf(tmp_path / "ours.gguf")
    else:
        mine = ours(folder, tmp_path / "ours.gguf", "f32")
    notes = make_plan(open_config(folder), None).notes
    assert not [note for note in notes if note.startswith("these keys of config.json")]
    other = theirs(name, folder, tmp_path / "theirs.gguf")
    a, b = tensors(mine), tensors(other)
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if not alike(each, a[each], b[each])]
    generic = {key for key in mine.metadata.keys() | other.metadata.keys() if "tokenizer." in key}
    allowed = line.model.differs.keys() | (generic if line.model.generic else set())
    assert not oracles.unlike(mine.path, mine.metadata, other.metadata, allowed)
    found = logits(mine.path, IDS)
    assert np.isfinite(found).all() and found.std() > 0.01


@pytest.mark.parametrize(("name", "published"), SPELLINGS)
def test_logits_of_transformers(name: str, published: bool, tmp_path: Path) -> None:
    line, folder = newest.NEWEST[name].model, tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = newest.write(name, folder, published=published)
    found = error(ours(folder, tmp_path / "ours.gguf", "f32").path, model, IDS)
    print(f"{name}: {found:.2e}")
    assert found < line.nmse


# Those that cannot be made four times as wide: llama.cpp wants all heads to be as wide as the embedding.
NARROW = ("ling-2", "sarvam")


@pytest.mark.parametrize(
    "name", [name for name, line in newest.NEWEST.items() if not line.packed and name not in NARROW]
)
def test_quantized_in_one_step_as_by_the_converter_and_the_quantizer(name: str, tmp_path: Path) -> None:
    folder, line = tmp_path / "Tiny-Fixture", newest.NEWEST[name].model
    folder.mkdir()
    newest.write(name, folder, dtype="bfloat16", wide=True)
    run(request(folder, "q4_K_M", outfile=tmp_path / "ours.gguf"))
    middle = theirs(name, folder, tmp_path / "middle.gguf", "f32" if line.folded else "bf16")
    quantizer.quantize(middle.path, tmp_path / "theirs.gguf", quantizer.Settings(FILE_TYPES["Q4_K_M"].number or 0))
    a, b = tensors(open_gguf(tmp_path / "ours.gguf")), tensors(open_gguf(tmp_path / "theirs.gguf"))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if not same(each, a[each], b[each])]


# Those that are run block by block, and whether from a GGUF file too, which is then one of another class.
RUN = {"kimi-k2.5": True, "kimi-vl": True, "dots3-note": False, "deepseek-v4": False, "glm5-next": False}
UNPUBLISHED = {"glm5-next"}  # of its published config, transformers does not read which blocks have experts


@pytest.mark.parametrize("name", RUN)
def test_what_is_run_block_by_block(name: str, tmp_path: Path) -> None:
    import torch
    from test_forward import streamed_logits

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = newest.write(name, folder, published=name not in UNPUBLISHED)
    tokens = np.random.default_rng(5).integers(3, 300, (2, 48)).astype(np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens).long()).logits.numpy()
    for path in (folder, *([ours(folder, tmp_path / "ours.gguf", "f32").path] if RUN[name] else [])):
        found = streamed_logits(path, tokens)
        assert ((found - expected) ** 2).mean() / (expected**2).mean() < 1e-10


@pytest.mark.parametrize("name", ["deepseek-v4", "dots3-note"])
def test_importance_as_llama_imatrix_has_it(name: str, tmp_path: Path) -> None:
    from test_imatrix import reading, theirs

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write(name, folder)
    file, options = ours(folder, tmp_path / "ours.gguf", "f32").path, reading(tmp_path, chunks=2)
    found = make_imatrix(request(folder), open_pass, options, process_output=True).imatrix.entries
    wanted = theirs(file, options, "--process-output").entries
    assert found.keys() == wanted.keys()
    for entry, its in found.items():
        other = wanted[entry]
        if "attn_output_a" in entry:  # llama.cpp has a sum for each group, which its own quantizer takes for none
            groups = other.sums.reshape(-1, its.sums.shape[-1])
            np.testing.assert_allclose(its.sums, groups.sum(axis=0, keepdims=True), rtol=1e-3)
            continue
        assert np.array_equal(its.counts, other.counts), entry
        np.testing.assert_allclose(its.sums, other.sums, rtol=1e-3, err_msg=entry)


@pytest.mark.parametrize("name", ["deepseek-v4", "dots3-note", "glm5-next"])
def test_backward_every_matrix_is_told(name: str, tmp_path: Path) -> None:
    """But convolutions, positions of compressors, indexers, and the table that chooses experts."""
    folder, told = tmp_path / "Tiny-Fixture", dict[str, tuple[int, int]]()
    folder.mkdir()
    newest.write(name, folder, published=name not in UNPUBLISHED)

    def observe(windows: Any) -> None:
        told.update(
            {each.tensor: (each.gradients.shape[-1], each.inputs.shape[-1]) for told in windows for each in told}
        )

    with opened_model(request(folder)) as model:
        skeleton = build_skeleton(model)
        tokens = np.random.default_rng(7).integers(3, 300, (2, 140)).astype(np.int32)
        run_backward(skeleton, model.source, tokens, observe=observe, finished=lambda block: None, device="cpu")
        outputs = [each for k in range(len(skeleton.blocks)) for each in skeleton.outputs(k) if len(each.shape) > 1]
    missing = {each.name.split(".", 2)[2] for each in outputs if told.get(each.name) != each.shape[-2:]}
    assert {each for each in missing if not each.startswith(UNTOLD)} == set()


UNTOLD = ("indexer", "attn_compressor_ape", "ffn_gate_tid2eid", "attn_k_b", "ssm_conv1d", "exp_probs_b", "ssm_a")


@pytest.mark.parametrize("name", [name for name in newest.NEWEST if not RUN.get(name)])
def test_what_needs_the_class_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write(name, folder)
    file = ours(folder, tmp_path / "ours.gguf", "f32").path
    for path in (*([folder] if name not in RUN or name in UNPUBLISHED else []), file):
        with pytest.raises(Unsupported), opened_model(request(path)) as model:
            build_skeleton(model)
    with pytest.raises(Unsupported, match="no Hugging Face class"):
        prepare(ToHfJob(file, tmp_path / "back", sync=False))


def test_one_of_128_tokens_of_deepseek_v4(tmp_path: Path) -> None:
    """Its heavy compressors have made a token only after so many; sequences of 48 never see one."""
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = newest.write("deepseek-v4", folder)
    ids = np.random.default_rng(6).integers(3, 300, 250).tolist()
    assert error(ours(folder, tmp_path / "ours.gguf", "f32").path, model, ids, 256) < 1e-9


def test_attention_of_deepseek_v4_in_fp8(tmp_path: Path) -> None:
    """The converter stores such weights as Q8_0; so does the recipe of this name."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write("deepseek-v4", folder)
    newest.pack_experts(folder)
    path, seeded = folder / "model.safetensors", torch.Generator().manual_seed(3)
    weights = load_file(path)
    chosen = [
        name for name in weights if name.rpartition(".attn.")[2] in {f"{each}.weight" for each in ("wq_b", "wo_b")}
    ]
    for name in chosen:
        rows, columns = weights[name].shape
        scales = torch.randint(118, 122, (-(-rows // 128), -(-columns // 128)), generator=seeded, dtype=torch.uint8)
        weights[name] = (weights[name] * 64).to(torch.float8_e4m3fn)
        weights[name.removesuffix("weight") + "scale"] = scales.view(torch.float8_e8m0fnu)
    save_file(weights, path, {"format": "pt"})
    run(request(folder, "q8_0", outfile=tmp_path / "ours.gguf"))
    a = tensors(open_gguf(tmp_path / "ours.gguf"))
    b = tensors(theirs("deepseek-v4", folder, tmp_path / "theirs.gguf"))
    made = [name for name in b if b[name][1] == "Q8_0"]
    assert len(made) == len(chosen) == 10
    assert [name for name in made if a[name] != b[name]] == []


def test_a_table_that_names_no_expert_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write("deepseek-v4", folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["layers.1.ffn.gate.tid2eid"][7, 1] = 8
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(Malformed, match="it chooses from 0 to 7, and holds 0 to 8") as raised:
        ours(folder, tmp_path / "ours.gguf", "f32")
    assert "layers.1.ffn.gate.tid2eid" in str(raised.value)
    assert not (tmp_path / "ours.gguf").exists()


@pytest.mark.parametrize("name", newest.NEWEST)
def test_the_cache_is_as_large_as_that_of_llama_cpp(name: str, tmp_path: Path) -> None:
    newest.write(name, tmp_path / "Tiny-Fixture")
    file = ours(tmp_path / "Tiny-Fixture", tmp_path / "m.gguf", "f32")
    theirs = allocated(file.path, SIZES)
    mine = [cache_bytes(file.metadata, context, cache_type("f16")) / 2**20 for context in CONTEXTS]
    assert theirs == pytest.approx(mine, abs=0.04)  # the size of each part is printed with two decimals


@pytest.mark.parametrize("name", [name for name, line in newest.NEWEST.items() if not line.packed])
def test_what_stays_in_float32_is_that_of_the_converter(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write(name, folder, dtype="bfloat16")
    a = tensors(ours(folder, tmp_path / "ours.gguf", "bf16"))
    b = tensors(theirs(name, folder, tmp_path / "theirs.gguf", "bf16"))
    assert a.keys() == b.keys()
    assert not [(each, a[each][:2], b[each][:2]) for each in a if not alike(each, a[each], b[each], 1e-2)]


SEEING = ("kimi-k2.5", "kimi-vl", "qwen4-exp-vl")


@pytest.mark.parametrize("name", SEEING)
def test_a_projector_is_that_of_the_converter(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    newest.write(name, folder)
    for type in ("f16", "bf16", "f32", "q8_0"):
        run(request(folder, outtype="f32", mmproj=True, mmproj_outtype=type, outdir=tmp_path))
        mine = open_gguf(tmp_path / f"mmproj-Tiny-Fixture-{type.upper()}.gguf")
        path = reference.convert(folder, tmp_path / f"{type}.gguf", "--mmproj", "--outtype", type, raw=True)
        theirs = open_gguf(path)
        assert tensors(mine) == tensors(theirs), type
        assert mine.metadata == theirs.metadata, type


def test_what_qwen4_exp_sees_becomes_the_embeddings_of_transformers(tmp_path: Path) -> None:
    from test_projectors import QWEN, by_transformers

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = newest.write("qwen4-exp-vl", folder)
    run(request(folder, outtype="f32", mmproj=True, mmproj_outtype="f32", outdir=tmp_path))
    image = np.random.default_rng(3).integers(0, 256, (112, 224, 3), dtype=np.uint8)
    expected = by_transformers(model, QWEN, newest.SIGLIP_PIXELS, image)
    files = (tmp_path / f"{each}Tiny-Fixture-F32.gguf" for each in ("", "mmproj-"))
    found = mtmd.embeddings(*files, image, max_tokens=QWEN.max_tokens)
    assert ((found - expected) ** 2).sum() / (expected**2).sum() < 1e-5


def test_both_spellings_of_kimi_give_one_projector(tmp_path: Path) -> None:
    files = []
    for published in (False, True):
        folder = tmp_path / str(published) / "Tiny-Fixture"
        folder.mkdir(parents=True)
        newest.write("kimi-k2.5", folder, published=published)
        run(request(folder, outtype="f32", mmproj=True, mmproj_outtype="f16", outdir=folder.parent))
        files.append((folder.parent / "mmproj-Tiny-Fixture-F16.gguf").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("size", [(112, 112), (56, 112), (168, 140)])
def test_what_kimi_sees_becomes_the_embeddings_of_transformers(size: tuple[int, int], tmp_path: Path) -> None:
    """Of images that need no scaling; positions are stretched over the larger ones, and drawn together for others."""
    import torch

    folder = tmp_path / "Tiny-Fixture"
    folder.mkdir()
    model = newest.write("kimi-k2.5", folder)
    run(request(folder, outtype="f32", mmproj=True, mmproj_outtype="f32", outdir=tmp_path))
    image = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    patch, (height, width) = 14, (each // 14 for each in size)
    colours = (image.astype(np.float32) / 255 - 0.5) / 0.5
    patches = colours.reshape(height, patch, width, patch, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, patch, patch)
    grid = torch.tensor([[1, height, width]])
    with torch.no_grad():
        expected = model.model.get_image_features(torch.from_numpy(patches.copy()), grid).pooler_output[0].numpy()
    files = (tmp_path / f"{each}Tiny-Fixture-F32.gguf" for each in ("", "mmproj-"))
    found = mtmd.embeddings(*files, image)
    assert found.shape == expected.shape
    deviation = ((found - expected) ** 2).sum() / (expected**2).sum()
    print(f"{size}: {deviation:.2e}")
    assert deviation < 1e-5
