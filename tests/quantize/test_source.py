"""Old Llama files as the GGUF that they would be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import old_ggml
import pytest
from old_ggml import Tensor

import checkpoints
from ggufsmith.container.errors import Failure, Malformed, Unsupported, Usage
from ggufsmith.container.reader import Gguf, open_gguf
from ggufsmith.container.values import f32, strings, u32
from ggufsmith.quantize.file_pass import open_file_pass
from ggufsmith.quantize.source import open_model
from requesting import opened, plan, request, run


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in F16, with fewer key-value heads than heads."""
    folder = tmp_path_factory.mktemp("llama")
    source = checkpoints.write("llama", folder / "source")
    run(request(source, outfile=folder / "tiny-F16.gguf"))
    return folder / "tiny-F16.gguf"


def quantized(source: Path, path: Path, recipe: str, **options: Any) -> Path:
    run(request(source, recipe, outfile=path, **options))
    return path


def old(source: Path, path: Path, kind: str = "ggjt v3") -> Path:
    with open_gguf(source) as gguf:
        return old_ggml.write(kind, gguf, path)


def contents(path: Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    data = path.read_bytes()
    with open_gguf(path) as gguf:
        tensors = {
            t.name: (t.shape, t.format.name, data[t.offset : t.offset + t.nbytes]) for t in gguf.tensors.values()
        }
        return dict(gguf.metadata), tensors


@pytest.mark.parametrize("kind", old_ggml.VERSIONS)
def test_an_old_file_is_the_gguf_it_would_be(kind: str, f16: Path, tmp_path: Path) -> None:
    copied = quantized(old(f16, tmp_path / "tiny.bin", kind), tmp_path / "copy.gguf", "copy")
    (was, tensors), (now, again) = contents(f16), contents(copied)
    assert again == tensors
    differing = {key for key in {*was, *now} if key.startswith("llama.") and was.get(key) != now.get(key)}
    absent = {
        "llama.attention.key_length",
        "llama.attention.value_length",
        "llama.rope.freq_base",
    }  # llama.cpp's default
    assert differing == {"llama.attention.layer_norm_rms_epsilon", *absent}
    assert not absent & now.keys()
    assert now["llama.attention.head_count_kv"] == u32(2)
    texts = "tokenizer.ggml.tokens"
    assert now[texts] == was[texts]
    if kind != "ggml":
        assert now["tokenizer.ggml.scores"] == was["tokenizer.ggml.scores"]
    types = now["tokenizer.ggml.token_type"].data
    assert types[:5].tolist() == [2, 3, 3, 6, 6] and types[300] == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("recipe", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_K_M", "q2_K"])
def test_blocks_are_copied_byte_for_byte(recipe: str, f16: Path, tmp_path: Path) -> None:
    small = quantized(f16, tmp_path / "small.gguf", recipe)
    copied = quantized(old(small, tmp_path / "tiny.bin"), tmp_path / "copy.gguf", "copy")
    (was, tensors), (now, again) = contents(small), contents(copied)
    assert again == tensors
    assert now["general.file_type"] == was["general.file_type"]


def test_any_recipe_works_as_on_the_gguf(f16: Path, tmp_path: Path) -> None:
    expected = quantized(f16, tmp_path / "expected.gguf", "q4_K_M")
    found = quantized(old(f16, tmp_path / "tiny.bin"), tmp_path / "found.gguf", "q4_K_M")
    assert contents(found)[1] == contents(expected)[1]
    with pytest.raises(Failure, match="already quantized"):
        plan(request(old(expected, tmp_path / "small.bin"), "q8_0", outfile=tmp_path / "no.gguf"))


def test_assumptions_are_said_until_they_are_overridden(f16: Path, tmp_path: Path) -> None:
    path = old(f16, tmp_path / "tiny.bin", "ggml")
    context, eps = "llama.context_length", "llama.attention.layer_norm_rms_epsilon"
    with opened(request(path, "copy", outfile=tmp_path / "o.gguf")) as made:
        notes = "\n".join(made.notes)
    assert f"{context}: assumed 2048" in notes and f"{eps}: assumed 5e-06" in notes
    assert "no token scores" in notes and "--tokenizer" in notes
    assert "2 query heads share a key-value head" in notes
    known = (f"{context}=int:4096", f"{eps}=float:1e-5")
    vocabulary = {"tokenizer.ggml.tokens": strings(["a"])}
    asked = request(path, "copy", outfile=tmp_path / "o.gguf", override_kv=known)
    with open_file_pass(asked, vocabulary) as made:
        assert made.notes == ("2 query heads share a key-value head, according to the shape of attn_k",)
        metadata = made.outputs[0].shards.whole.metadata
    assert metadata[context] == u32(4096)
    assert metadata[eps] == f32(1e-5)
    assert {key: value for key, value in metadata.items() if key.startswith("tokenizer.")} == vocabulary


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("llama-2-7b.ggmlv3.q4_0.bin", "llama-2-7b"),
        ("ggml-model-f16.bin", "ggml-model"),
        ("merak-7b-v2.ggmlv3.q2_K.bin", "merak-7b-v2"),
        ("guanaco.bin", "guanaco"),
        ("tiny.ggml", "tiny"),
    ],
)
def test_names_of_outputs(file: str, name: str, f16: Path, tmp_path: Path) -> None:
    with opened(request(old(f16, tmp_path / file), "q8_0")) as made:
        assert made.outputs[0].path == tmp_path / f"{name}-Q8_0.gguf"


SIZES = (3, 32, 256, 4, 1, 8, 0)
TOKENS = [(b"<unk>", 0.0), (b"<s>", 0.0), (b"</s>", 0.0)]


def tensors() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings": (3, 32), "norm": (32,), "output": (3, 32)}
    for name, shape in {
        "attention_norm": (32,),
        "attention.wq": (32, 32),
        "attention.wk": (32, 32),
        "attention.wv": (32, 32),
        "attention.wo": (32, 32),
        "ffn_norm": (32,),
        "feed_forward.w1": (64, 32),
        "feed_forward.w2": (32, 64),
        "feed_forward.w3": (64, 32),
    }.items():
        shapes[f"layers.0.{name}"] = shape
    return shapes


Change = Callable[[dict[str, tuple[int, ...]]], object]
WRONG: dict[str, tuple[Change, tuple[int, ...], type[Failure], str]] = {
    "one tensor too few": (lambda t: t.pop("norm"), SIZES, Malformed, "1 tensor is missing"),
    "a block too many": (
        lambda t: t.update({"layers.1.ffn_norm": (32,)}),
        SIZES,
        Unsupported,
        "layers.1.ffn_norm.weight: not a tensor",
    ),
    "another model": (lambda t: t.update({"h.0.mlp": (32,)}), SIZES, Unsupported, "h.0.mlp.weight: not a tensor"),
    "a bias": (lambda t: t.update({"layers.0.attention.wq_bias": (32,)}), SIZES, Unsupported, "not a tensor"),
    "one of several parts": (lambda t: t.update({"tok_embeddings": (3, 16)}), SIZES, Malformed, "The parts of a model"),
    "vocabulary": (lambda t: t.update({"output": (4, 32)}), SIZES, Malformed, r"output.weight: \[4, 32\], not \[3, 32"),
    "keys and values": (lambda t: t.update({"layers.0.attention.wk": (12, 32)}), SIZES, Malformed, "do not fit"),
    "no heads": (lambda t: t, (3, 32, 256, 0, 1, 8, 0), Malformed, "0 heads"),
    "odd heads": (lambda t: t, (3, 32, 256, 5, 1, 8, 0), Malformed, "32 cannot be divided among 5 heads"),
    "rotary": (lambda t: t, (3, 32, 256, 4, 1, 6, 0), Malformed, "6 rotary"),
    "no layers": (lambda t: t, (3, 32, 256, 4, 0, 8, 0), Malformed, "0 layers"),
    "too many layers": (lambda t: t, (3, 32, 256, 4, 2**32 - 1, 8, 0), Malformed, "4294967295 layers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_whole_llama_model_is_refused(name: str, tmp_path: Path) -> None:
    change, sizes, kind, text = WRONG[name]
    shapes = tensors()
    change(shapes)
    path = tmp_path / "m.bin"
    made = [Tensor(f"{n}.weight", s, 0, np.zeros(s, "<f4").tobytes()) for n, s in shapes.items()]
    path.write_bytes(old_ggml.content("ggjt v3", sizes, TOKENS, made))
    with pytest.raises(kind, match=text):
        open_model(path)


def test_a_gguf_file_needs_no_ending(f16: Path, tmp_path: Path) -> None:
    """As in stores that name files by their hash."""
    (tmp_path / "sha256-01ab").write_bytes(f16.read_bytes())
    with opened(request(tmp_path / "sha256-01ab", "q8_0")) as made:
        assert made.outputs[0].path.name == "sha256-01ab-Q8_0.gguf"


def test_what_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="is a folder"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{}" * 20, encoding="utf-8")
    with pytest.raises(Malformed, match="not a GGUF file"):
        open_model(tmp_path / "config.json")


def test_an_unknown_file_type_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    made = [Tensor(f"{n}.weight", s, 0, np.zeros(s, "<f4").tobytes()) for n, s in tensors().items()]
    path.write_bytes(old_ggml.content("ggjt v3", (*SIZES[:6], 99), TOKENS, made))
    model = open_model(path)
    with model.files:
        assert "general.file_type" not in model.files.metadata
        assert isinstance(model.files.files[0], Gguf)
