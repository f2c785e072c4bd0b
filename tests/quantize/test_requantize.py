"""gguf-quant without its screen: what it writes, and what it refuses before it writes anything.

That the bytes are llama-quantize's is shown in conformance/test_quant_files.py.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_models as models
from small_models import F16, F32

from ggufsmith.container.copy import copy, plan_split
from ggufsmith.container.errors import Malformed, OutputConflict, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME, format_of
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.shards import Limits, open_gguf_set
from ggufsmith.container.values import array, string, u32
from ggufsmith.pipeline.outputs import OutputFile, Written
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize.overrides import parse_override
from ggufsmith.quantize.prune import prune_layers
from requesting import opened, plan, request, run

Q8_0 = format_of("Q8_0")


def work(asked: Request) -> tuple[OutputFile, Written]:
    planned = plan(asked)
    return planned.output, run(planned)


def untouched(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.write_model(tmp_path / "Tiny-1M-F16.gguf")


def test_named_by_the_convention_and_marked(model: Path) -> None:
    output, written = work(request(model, "q8_0"))
    assert output.path == model.with_name("Tiny-1M-Q8_0.gguf")
    assert written.notes == ()
    with open_gguf(output.path) as gguf:
        assert gguf.metadata["general.file_type"] == u32(7)
        assert gguf.metadata["general.quantization_version"] == u32(2)
        assert {name: info.format for name, info in gguf.tensors.items() if len(info.shape) > 1} == dict.fromkeys(
            (name for name, values in models.arrays().items() if values.ndim > 1), Q8_0
        )
        assert gguf.tensors["output_norm.weight"].format is F32


def test_several_recipes_equal_each_alone(model: Path, tmp_path: Path) -> None:
    (tmp_path / "together").mkdir()
    names = ("q8_0", "q4_0", "f32", "copy")
    planned = plan(request(model, *names, outdir=tmp_path / "together", threads=2))
    run(planned)
    paths = [output.path for output in planned.made.outputs]
    for name, path in zip(names, paths, strict=True):
        alone, _ = work(request(model, name, outfile=tmp_path / f"{name}.gguf", threads=1))
        assert path.read_bytes() == alone.path.read_bytes()


def test_other_types_are_copied(tmp_path: Path) -> None:
    """Integers and 64-bit numbers stay bit for bit, as do tensors that have their type already."""
    rng = np.random.default_rng(0)
    extra = {}
    for k, (name, size) in enumerate((("I8", 1), ("I32", 4), ("I64", 8), ("F64", 8))):
        extra[f"blk.{k % 2}.attn_{'kv'[k // 2]}.bias"] = (BY_NAME[name], rng.integers(0, 255, (3, 5 * size), np.uint8))
    model = models.write_model(tmp_path / "m.gguf", **extra)
    first, _ = work(request(model, "q8_0", outfile=tmp_path / "a.gguf"))
    again, _ = work(request(first.path, "q8_0", outfile=tmp_path / "b.gguf"))
    assert first.path.read_bytes() == again.path.read_bytes()
    with open_gguf(first.path) as gguf:
        for name, (format, data) in extra.items():
            info = gguf.tensors[name]
            found = np.empty(info.nbytes, np.uint8)
            gguf.read_into(info, 0, found)
            assert info.format is format and found.tobytes() == data.tobytes()


def test_the_place_of_the_files_leaves_no_trace(tmp_path: Path) -> None:
    digests = set()
    for folder in ("a", "elsewhere"):
        (tmp_path / folder).mkdir()
        model = models.write_model(tmp_path / folder / "m.gguf")
        imatrix = models.write_imatrix(tmp_path / folder / f"{folder}.imatrix", models.importance(models.arrays()))
        output, _ = work(request(model, "q4_0", imatrix=imatrix))
        digests.add(hashlib.sha256(output.path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_importance_changes_what_it_should(model: Path, tmp_path: Path) -> None:
    imatrix = models.write_imatrix(tmp_path / "i", models.importance(models.arrays()))
    plain, _ = work(request(model, "q4_0", outfile=tmp_path / "a.gguf", pure=True))
    steered, _ = work(
        request(
            model,
            "q4_0",
            outfile=tmp_path / "b.gguf",
            pure=True,
            imatrix=imatrix,
            include_weights=("attn_v",),
        )
    )
    with open_gguf(plain.path) as a, open_gguf(steered.path) as b:
        differ = []
        for name, info in a.tensors.items():
            x, y = np.empty(info.nbytes, np.uint8), np.empty(info.nbytes, np.uint8)
            a.read_into(info, 0, x)
            b.read_into(b.tensors[name], 0, y)
            if not np.array_equal(x, y):
                differ.append(name)
    assert differ == ["blk.0.attn_v.weight", "blk.1.attn_v.weight"]


def test_importance_of_zero_erases_nothing(model: Path, tmp_path: Path) -> None:
    means = {"blk.0.attn_q.weight": np.zeros((1, 64), np.float32)}
    imatrix = models.write_imatrix(tmp_path / "i", means)
    output, written = work(request(model, "q4_0", imatrix=imatrix, pure=True))
    assert any("blk.0.attn_q.weight" in note for note in written.notes)
    plain, _ = work(request(model, "q4_0", outfile=tmp_path / "p.gguf", pure=True))
    for path in (output.path, plain.path):
        with open_gguf(path) as gguf:
            info = gguf.tensors["blk.0.attn_q.weight"]
            data = np.empty(info.nbytes, np.uint8)
            gguf.read_into(info, 0, data)
            assert (data.reshape(-1, 18)[:, :2] != 0).any()


def test_shards_in_and_out(model: Path, tmp_path: Path) -> None:
    with open_gguf_set(model) as source:
        shards = copy(source, plan_split(source, Limits(max_tensors=4)), tmp_path / "S-1M-F16.gguf", sync=False).paths
    whole, _ = work(request(model, "q8_0"))
    joined, _ = work(request(shards[1], "q8_0", outfile=tmp_path / "joined.gguf"))
    assert joined.path.read_bytes() == whole.path.read_bytes()
    kept, _ = work(request(shards[0], "q8_0", keep_split=True))
    assert [path.name for path in kept.paths] == [path.name.replace("F16", "Q8_0") for path in shards]
    with open_gguf_set(kept.paths[0]) as a, open_gguf_set(shards[0]) as b:
        assert a.counts == b.counts
        assert [set(file.tensors) for file in a.files] == [set(file.tensors) for file in b.files]


def test_pruning(tmp_path: Path) -> None:
    names = dict.fromkeys(models.arrays(blocks=4))
    renamed = prune_layers(names, [2, 0], 4)
    assert renamed["blk.1.attn_q.weight"] == "blk.0.attn_q.weight"
    assert renamed["blk.3.attn_q.weight"] == "blk.1.attn_q.weight"
    assert renamed["token_embd.weight"] == "token_embd.weight"
    assert "blk.0.attn_q.weight" not in renamed and "blk.2.attn_q.weight" not in renamed
    with pytest.raises(Usage, match="layers 0 to 3"):
        prune_layers(names, [4], 4)
    with pytest.raises(Usage, match="every layer"):
        prune_layers(names, range(4), 4)
    arrays = {name: models.plain(v, F16 if v.ndim > 1 else F32) for name, v in models.arrays(4).items()}
    keys = {**models.metadata(4), "llama.attention.head_count_kv": array(np.array([1, 2, 3, 4], np.uint32))}
    model = models.write_gguf(tmp_path / "m.gguf", keys, arrays)
    output, _ = work(request(model, "copy", outfile=tmp_path / "o.gguf", prune_layers=(1,)))
    with open_gguf(output.path) as gguf:
        assert gguf.metadata["llama.block_count"] == u32(3)
        assert gguf.metadata["llama.attention.head_count_kv"].data.tolist() == [1, 3, 4]  # type: ignore[union-attr]
        data = np.empty(gguf.tensors["blk.1.attn_q.weight"].nbytes, np.uint8)
        gguf.read_into(gguf.tensors["blk.1.attn_q.weight"], 0, data)
    assert data.tobytes() == arrays["blk.2.attn_q.weight"][1].tobytes()


def test_pruning_counts_the_layers_that_are_left(tmp_path: Path) -> None:
    """Whatever number the user has set, as llama-quantize does; and the key moves to the end, as there."""
    arrays = {name: models.plain(v, F16 if v.ndim > 1 else F32) for name, v in models.arrays(4).items()}
    keys = {**models.metadata(4), "llama.attention.head_count_kv": array(np.array([1, 2, 3, 4], np.uint32))}
    model = models.write_gguf(tmp_path / "m.gguf", keys, arrays)
    texts = ("llama.block_count=int:80", "x.y=int:1")
    output, _ = work(request(model, "q8_0", outfile=tmp_path / "o.gguf", prune_layers=(1, 2), override_kv=texts))
    with open_gguf(output.path) as gguf:
        assert list(gguf.metadata)[-2:] == ["x.y", "llama.block_count"]
        assert gguf.metadata["llama.block_count"] == u32(2)
        assert gguf.metadata["llama.attention.head_count_kv"] == array(np.array([1, 4], np.uint32))


def test_pruning_one_stack_of_two() -> None:
    """The layers of an encoder and of a decoder have the same numbers, and counts of their own."""
    names = {f"{stack}.blk.{layer}.attn_q.weight": None for stack in ("enc", "dec") for layer in range(3)}
    assert prune_layers(names, [], 3) == {name: name for name in names}
    with pytest.raises(Unsupported, match="more than one stack"):
        prune_layers(names, [1], 3)


def test_overridden_keys_move_to_the_end(model: Path, tmp_path: Path) -> None:
    """As llama-quantize sets them, the file type too, which it has set itself before."""
    keys = {"x.y": 1, "general.file_type": 9, "llama.context_length": 7}
    texts = tuple(f"{key}=int:{number}" for key, number in keys.items())
    output, _ = work(request(model, "q8_0", outfile=tmp_path / "o.gguf", override_kv=texts))
    with open_gguf(output.path) as gguf:
        assert list(gguf.metadata)[-4:] == ["general.quantization_version", *keys]
        assert gguf.metadata["general.file_type"] == u32(9)


def test_overrides_of_keys() -> None:
    assert parse_override("a.b=int:7") == ("a.b", u32(7))
    assert parse_override("a=str:x=y:z")[1] == string("x=y:z")
    assert parse_override("a=bool:false")[1].data is False
    assert parse_override("a=float:0.1")[1].data == np.float32(0.1)
    for text in ("a", "a=7", "a=int:x", "a=bool:1", "=int:1", "a=double:1"):
        with pytest.raises(Usage):
            parse_override(text)


@pytest.mark.parametrize(
    ("name", "place", "scale"), [("Q8_0", 0, b"\x00\x7e"), ("MXFP4", 0, b"\xff"), ("IQ1_M", 53, b"\xf0\x00\x70")]
)
def test_scales_that_are_damaged(name: str, place: int, scale: bytes, tmp_path: Path) -> None:
    """A copied block is not decoded, so its scale is looked at: a half, a power of two, a half in four parts."""
    wide = {"blk.1.attn_q.weight": models.arrays(width=256)["blk.1.attn_q.weight"]}
    model = models.write_model(tmp_path / "m-F16.gguf", **{key: models.plain(v, F16) for key, v in wide.items()})
    imatrix = models.write_imatrix(tmp_path / "imatrix", models.importance(wide))
    first, _ = work(request(model, "q8_0", tensor_types=(f"blk.1.attn_q={name}",), imatrix=imatrix))
    data = bytearray(first.path.read_bytes())
    with open_gguf(first.path) as gguf:
        at = gguf.tensors["blk.1.attn_q.weight"].offset + format_of(name).size * 5 + place
    data[at : at + len(scale)] = scale
    (tmp_path / "bad.gguf").write_bytes(data)
    before = untouched(tmp_path)
    with pytest.raises(Malformed, match=r"bad\.gguf: blk\.1\.attn_q\.weight.*1 blocks"):
        work(request(tmp_path / "bad.gguf", "copy", outfile=tmp_path / "o.gguf"))
    assert untouched(tmp_path) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_damaged(value: float, tmp_path: Path) -> None:
    values = models.arrays()["blk.0.attn_v.weight"]
    values[3, 5] = value
    model = models.write_model(tmp_path / "m-F16.gguf", **{"blk.0.attn_v.weight": models.plain(values, F16)})
    before = untouched(tmp_path)
    with pytest.raises(Malformed, match=r"blk\.0\.attn_v\.weight.*row 3, column 5"):
        work(request(model, "q8_0"))
    assert untouched(tmp_path) == before


def test_refused_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    quantized, _ = work(request(model, "q8_0"))
    narrow = models.write_model(tmp_path / "narrow-F16.gguf", width=48)
    imatrix = models.write_imatrix(tmp_path / "i", models.importance(models.arrays(width=96)))
    numbers = (BY_NAME["F64"], np.zeros((2, 512), np.uint8))
    odd = models.write_model(tmp_path / "odd.gguf", **{"blk.0.attn_k.weight": numbers})
    wide = models.write_model(tmp_path / "wide-F16.gguf", blocks=1, width=256)
    empty = models.write_gguf(tmp_path / "vocab.gguf", models.metadata(), {})
    before = untouched(tmp_path)
    for wrong, kind, message in (
        (request(model), Usage, "this is already a GGUF file"),
        (request(model, "q8_0", "q4_0", outfile=tmp_path / "o.gguf"), Usage, "several recipes"),
        (request(model, "q4_K", "q4_K_M"), Usage, "two of the recipes"),
        (request(wide, "iq1_s"), Usage, "importance matrix"),
        (request(model, "q8_0", tensor_types=("attn_w=q8_0",)), Usage, "attn_w"),
        (request(quantized.path, "q4_0"), Usage, "already quantized"),
        (request(narrow, "q8_0", strict=True), Usage, "--strict"),
        (request(model, "q4_0", imatrix=imatrix), Malformed, "another model"),
        (request(model, "q4_0", include_weights=("attn",)), Usage, "--imatrix"),
        (request(model, "q8_0", prune_layers=(2,)), Usage, "layers 0 to 1"),
        (request(odd, "q8_0"), Unsupported, "F64"),
        (request(wide, "q8_0", tensor_types=("attn_v=q8_K",)), Unsupported, "Q8_K"),
        (request(empty, "q8_0"), Malformed, "no tensors"),
        (request(tmp_path / "absent.gguf", "q8_0"), Usage, "there is no such file"),
        (request(model, "f16"), OutputConflict, "is the input"),
        (request(model, "q8_0", overwrite=False), OutputConflict, "already exists"),
    ):
        with pytest.raises(kind, match=message):
            work(wrong)
    assert untouched(tmp_path) == before


def test_options_without_effect_are_told(tmp_path: Path) -> None:
    """A model whose token embeddings are the output too."""
    model = models.write_model(tmp_path / "m-F16.gguf")
    options: dict[str, Any]
    for options, expected in (
        ({"leave_output_tensor": True}, ["--leave-output-tensor"]),
        ({"output_tensor_type": "Q5_0"}, []),
        ({"output_tensor_type": "Q5_0", "pure": True}, ["--output-tensor-type"]),
        ({"output_tensor_type": "Q5_0", "token_embedding_type": "Q5_0"}, ["--output-tensor-type"]),
    ):
        with opened(request(model, "q8_0", **options)) as made:
            assert [note.partition(" ")[0] for note in made.outputs[0].notes] == expected


def test_fallbacks_and_costs_are_told(tmp_path: Path) -> None:
    narrow = models.write_model(tmp_path / "narrow-F16.gguf", width=48)
    with opened(request(narrow, "q8_0")) as made:
        (output,) = made.outputs
        (note,) = output.notes
    assert note.startswith("9 of 12 tensors have another type than the recipe gives (Q8_0 to F16)")
    assert f"{output.bits_per_weight:.2f} bits per weight" in note
    model = models.write_model(tmp_path / "m-F16.gguf")
    rules = 'extends = "q8_0"\n[[rule]]\ntype = "q4_0"\nmatch = "ffn_dwn"\n'
    (tmp_path / "own.toml").write_text(rules, encoding="utf-8")
    with pytest.raises(Usage, match=r"own\.toml:2: matches none"):
        plan(request(model, str(tmp_path / "own.toml")))
    first, _ = work(request(model, "q8_0"))
    with opened(request(first.path, "q4_0", allow_requantize=True)) as made:
        assert any("second time, from Q8_0" in note for note in made.outputs[0].notes)
