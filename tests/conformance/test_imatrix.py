"""Importance matrices against llama-imatrix and llama-quantize.

What is left of the difference on a file in F32, with caches in F32: llama-imatrix adds up in float32, one token after
the other; and ggml takes GELU from a table in 16 bits, which gemma's feed-forward networks show (up to 6e-4). With its
defaults, keys and values in F16 and flash attention, some sums differ by up to 3e-3.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import checkpoints
import zoo
from ggufsmith.calibrate.collect import squares
from ggufsmith.calibrate.make import make_imatrix
from ggufsmith.calibrate.statistics import layers, statistics
from ggufsmith.container.reader import open_gguf
from ggufsmith.convert.open import open_pass
from ggufsmith.pipeline.request import Request, TextOptions
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.imatrix.record import Imatrix, merged
from ggufsmith.quantize.imatrix.write import FORMATS, ImatrixFormat, write_imatrix
from llama_tools import NUMBER, PLAIN, run_tool
from needed import need
from requesting import request
from requesting import run as convert

pytestmark = pytest.mark.conformance

KINDS = ("llama", "qwen3", "gemma3", "mixtral", "qwen2-moe", "qwen3-moe")
CONTEXT, CHUNKS = 64, 12
DOCS = Path(__file__).resolve().parents[2] / "docs"


def text(folder: Path) -> Path:
    """Prose long enough for the windows, whatever the vocabulary."""
    pages = (DOCS / name for name in ("batch.md", "converting.md", "files.md", "quantizing.md"))
    path = folder / "text.txt"
    path.write_text("\n".join(page.read_text(encoding="utf-8") for page in pages), encoding="utf-8", newline="\n")
    return path


def reading(folder: Path, context: int = CONTEXT, chunks: int = CHUNKS) -> TextOptions:
    return TextOptions(text=(text(folder),), context=context, chunks=chunks, device="cpu")


def ours(model: Path, options: TextOptions, *, threads: int = 2, process_output: bool = True) -> Imatrix:
    return make_imatrix(
        Request(model), partial(open_pass), options, process_output=process_output, threads=threads
    ).imatrix


def theirs(model: Path, options: TextOptions, *more: str, output: Path | None = None) -> Imatrix:
    made = output or model.with_name("theirs.gguf")
    windows = ["-c", options.context, "-b", options.context, "--chunks", options.chunks]
    run_tool("llama-imatrix", "-m", model, "-f", options.text[0], *windows, *more, "--no-ppl", "-o", made, *PLAIN)
    return open_imatrix(made)


def f32_of(kind: str, folder: Path) -> Path:
    source = checkpoints.write(kind, folder / "Tiny-2M-v1.0")
    path = folder / "Tiny-F32.gguf"
    convert(request(source, outtype="f32", outfile=path))
    return path


def check(found: Imatrix, wanted: Imatrix, tolerance: float = 1e-3) -> None:
    assert found.entries.keys() == wanted.entries.keys()
    assert (found.datasets, found.chunks, found.chunk_size) == (wanted.datasets, wanted.chunks, wanted.chunk_size)
    for name, entry in found.entries.items():
        other = wanted.entries[name]
        assert np.array_equal(entry.counts, other.counts), name
        np.testing.assert_allclose(entry.sums, other.sums, rtol=tolerance, atol=0, err_msg=name)
        one, two = (each.sums.astype(np.float64).reshape(-1) for each in (entry, other))
        assert one @ two / np.sqrt((one @ one) * (two @ two)) > 0.99999, name


@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_counts_are_llama_imatrix_s(kind: str, tmp_path: Path) -> None:
    """Of the GGUF file, and of the checkpoint that it was made from."""
    model = f32_of(kind, tmp_path)
    options = reading(tmp_path)
    wanted = theirs(model, options, "--process-output")
    check(ours(model, options), wanted)
    check(ours(tmp_path / "Tiny-2M-v1.0", options), wanted)
    blocks = ours(model, options, process_output=False).entries.keys()
    assert blocks == wanted.entries.keys() - {"output.weight"}


# What is written in another way in transformers than in llama.cpp -> how far apart sums may be, and why.
WRITTEN_OTHERWISE = {
    "deepseek-v2": 1e-3,  # keys and values of a latent
    "mistral4": 1e-3,  # the same, and experts with gate and up in one
    "qwen3_5": 1e-3,  # linear attention, whose value heads are in another order
    "lfm2-moe": 1e-3,  # short convolutions
    "qwen3_5-moe": 1e-3,  # the same, and packed experts
    "qwen3-vl-moe": 1e-3,  # packed experts
    "qwen3-vl": 1e-3,  # a model inside another
    "ministral3": 1e-3,  # queries that are scaled by position
    "llama4": 1e-3,  # experts that are all given all tokens
    "gpt2": 1e-3,  # weights that are turned
    "olmo2": 1e-3,  # attention is given the hidden states as they are
    "nemotron_h_moe": 1e-3,  # state spaces, and experts in a latent
    "apertus": 1e-3,  # an activation whose parameters are keys
    "minicpm3": 1e-3,  # a latent that stays one matrix
    "mamba": 1e-3,  # a matrix that stands before its inputs, which are turned
    "falcon-mamba": 1e-3,
    "jamba": 1e-3,
    "hrm-text": 1e-3,  # blocks that are used several times
    "glm-dsa": 1e-3,  # choices of tokens that one block hands the next
    "granitemoe-swa": 1e-3,  # packed experts, and sinks
    "falcon-h1": 1e-3,  # scales that are folded into the weights
    "muse-glimmer": 1e-3,  # queries that are scaled behind a norm without weights
    "dbrx": 1e-3,  # experts in one matrix, and bounds of queries, keys and values
    "bamba": 1e-3,  # attention between state spaces, half of which rotates
    "step3p7": 1e-3,  # heads that differ from block to block, and bounds within experts
    "exaone4_5": 1e-3,  # a block for multi-token prediction, which is not run
    "glm4v-moe": 1e-3,  # models inside others, each with rotations by sections of its own
    "glm-ocr": 1e-3,
    "paddleocr": 1e-3,
    "hunyuan-vl": 1e-3,
    "minicpmv4_6": 1e-3,
    "internvl": 1e-3,
    "janus": 1e-3,
    "gpt-oss": 5e-3,  # llama.cpp rounds the ends of the ramp of YaRN to whole dimensions
    "gpt-neox": 1e-2,  # queries, keys and values in another order, and GELU by the tanh
    "falcon-40b": 1e-2,
    "bloom": 1e-2,
    "mpt-clipped": 1e-2,
    "gemma4-e2b": 1e-2,  # GELU from a table
    "gemma4-26b": 1e-2,
}


USED_AGAIN = {"hrm-text"}


@pytest.mark.parametrize("name", WRITTEN_OTHERWISE)
def test_of_what_is_written_otherwise_in_transformers(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-2M-v1.0"
    folder.mkdir()
    zoo.write(name, folder)
    model = tmp_path / "Tiny-F32.gguf"
    convert(request(folder, outtype="f32", outfile=model))
    options = reading(tmp_path, chunks=4)
    wanted = theirs(model, options, "--process-output")
    if name in USED_AGAIN:  # llama-imatrix counts the pieces by the first matrix, however often they pass it
        wanted = replace(wanted, chunks=4)
    check(ours(folder, options), wanted, WRITTEN_OTHERWISE[name])


@pytest.mark.parametrize("name", ["hy-v4", "gemma3n"])
def test_the_names_where_llama_cpp_computes_otherwise(name: str, tmp_path: Path) -> None:
    """It rotates Hunyuan 4 otherwise, and has another deviation in Gemma 3n (docs/architectures.md)."""
    folder = tmp_path / "Tiny-2M-v1.0"
    folder.mkdir()
    zoo.write(name, folder)
    model = tmp_path / "Tiny-F32.gguf"
    convert(request(folder, outtype="f32", outfile=model))
    options = reading(tmp_path, chunks=2)
    found, wanted = ours(folder, options).entries, theirs(model, options, "--process-output").entries
    assert found.keys() == wanted.keys()
    if name == "hy-v4":  # attention to the latent is written out there, without a kernel that does it
        assert any("attn_v_b" in each for each in found)
    else:
        assert all(np.array_equal(found[each].counts, wanted[each].counts) for each in found)


def test_a_trained_model(tmp_path: Path) -> None:
    (published,) = need("real").glob("*.gguf")
    model = tmp_path / "SmolLM2-135M-F32.gguf"
    convert(request(published, outtype="f32", outfile=model, allow_requantize=True))
    options = reading(tmp_path, context=512, chunks=2)
    wanted = theirs(model, options)
    check(ours(model, options, process_output=False), wanted)
    check(ours(published, options, process_output=False), wanted)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("maker", ["ours", "theirs"])
def test_llama_quantize_and_we_make_the_same_of_it(maker: str, format: ImatrixFormat, tmp_path: Path) -> None:
    """The same bytes, whoever made the importance matrix."""
    model, options = f32_of("qwen3-moe", tmp_path), reading(tmp_path)
    imatrix = tmp_path / f"i.{format}"
    if maker == "ours":
        write_imatrix(ours(model, options, process_output=False), imatrix, format, sync=False)
    else:
        theirs(model, options, "--output-format", format, output=imatrix)
    convert(request(model, "iq3_xxs", "q4_K_M", imatrix=imatrix, outdir=tmp_path / "ours"))
    for name in ("IQ3_XXS", "Q4_K_M"):
        quantized = tmp_path / f"theirs-{name}.gguf"
        run_tool("llama-quantize", "--imatrix", imatrix, model, quantized, name)
        assert tensors(tmp_path / "ours" / f"Tiny-{name}.gguf") == tensors(quantized)
    plain = tmp_path / "plain"
    convert(request(model, "q4_K_M", outdir=plain))
    assert tensors(plain / "Tiny-Q4_K_M.gguf") != tensors(quantized), "it has an effect"


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    data = path.read_bytes()
    with open_gguf(path) as gguf:
        return {
            name: (tensor.format.name, data[tensor.offset : tensor.offset + tensor.nbytes])
            for name, tensor in gguf.tensors.items()
        }


def test_merging_is_llama_imatrix_s(tmp_path: Path) -> None:
    """Of files in both formats, to the last bit."""
    model, options = f32_of("mixtral", tmp_path), reading(tmp_path)
    paths = [tmp_path / "one.gguf", tmp_path / "two.gguf", tmp_path / "three.dat"]
    theirs(model, options, output=paths[0])
    theirs(model, reading(tmp_path, chunks=5), output=paths[1])
    theirs(model, reading(tmp_path, chunks=7), "--output-format", "dat", output=paths[2])
    for parts in (paths[:2], paths[:1] * 2, paths[2:], paths):
        files = [word for path in parts for word in ("--in-file", str(path))]
        run_tool("llama-imatrix", "-m", model, *files, "-c", CONTEXT, "-o", tmp_path / "both.gguf")
        wanted = open_imatrix(tmp_path / "both.gguf")
        found = merged(list(map(open_imatrix, parts)), CONTEXT)
        assert (found.datasets, found.chunks, found.chunk_size) == (wanted.datasets, wanted.chunks, wanted.chunk_size)
        write_imatrix(found, tmp_path / "ours.gguf", sync=False)
        assert tensors(tmp_path / "ours.gguf") == tensors(tmp_path / "both.gguf")
        run_tool(
            "llama-imatrix", "-m", model, *files, "-c", CONTEXT, "--output-format", "dat", "-o", tmp_path / "both.dat"
        )
        write_imatrix(found, tmp_path / "ours.dat", "dat")
        numbers = open_imatrix(tmp_path / "both.dat").entries
        for name, entry in open_imatrix(tmp_path / "ours.dat").entries.items():
            assert np.array_equal(entry.sums, numbers[name].sums) and np.array_equal(entry.counts, numbers[name].counts)


def test_statistics_are_llama_imatrix_s(tmp_path: Path) -> None:
    model = f32_of("mixtral", tmp_path)
    path = tmp_path / "i.gguf"
    theirs(model, reading(tmp_path), output=path)
    said = run_tool("llama-imatrix", "-m", model, "--in-file", path, "--show-statistics")
    found = statistics(open_imatrix(path))
    rows = _rows(said, 13)
    assert len(rows) == len(found)
    by_name = {(str(each.layer), each.part): each for each in found}
    for layer, part, *numbers in rows:
        each = by_name[layer, part]
        wanted = [float(number) for number in numbers]
        assert wanted == pytest.approx(
            [
                each.total,
                each.minimum,
                each.maximum,
                each.mean,
                each.deviation,
                100 * each.active,
                each.elements,
                each.entropy,
                100 * each.evenness,
                100 * each.density,
                each.similarity,
            ],
            rel=1e-4,
            abs=0.006,
        ), (layer, part)
    for row, layer in zip(_rows(said, 4), layers(found), strict=True):
        assert [float(number) for number in row] == pytest.approx(
            [layer.layer, layer.total, 100 * layer.density, layer.similarity], rel=1e-4, abs=0.006
        )


def _rows(said: str, columns: int) -> list[Sequence[str]]:
    """The rows of a table with so many columns, separated by tabs; without percent signs and what the log puts before
    a line.
    """
    lines = (re.sub(r"^[\d.]+ I ", "", line) for line in said.splitlines())
    rows = [[cell.strip(" %\r") for cell in line.split("\t")] for line in lines]
    return [row for row in rows if len(row) == columns and re.fullmatch(NUMBER, row[-1])]


def test_the_sums_of_a_call(tmp_path: Path) -> None:
    """Against float64, for any number of rows, and the same for any number of threads."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for rows in (1, 2, 3, 7, 64, 1000):
        inputs = torch.randn(rows, 48, generator=generator)
        wanted = np.square(inputs.numpy().astype(np.float64)).sum(0)
        found = squares(inputs)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert np.array_equal(squares(inputs), found)
        finally:
            torch.set_num_threads(before)


def test_any_number_of_threads_gives_the_same(tmp_path: Path) -> None:
    model, options = f32_of("qwen3-moe", tmp_path), reading(tmp_path)
    one = ours(model, options, threads=1)
    for threads in (2, 3, 5):
        other = ours(model, options, threads=threads)
        for name, entry in one.entries.items():
            assert np.array_equal(entry.sums, other.entries[name].sums), (name, threads)
