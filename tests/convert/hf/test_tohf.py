"""GGUF back to Hugging Face: the folder holds what the file was made from, and makes the same file again."""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import write_gguf

import checkpoints
from faulted import run_faulty
from ggufsmith.container.errors import Failure, Malformed, NoSpace, OutputConflict, Unsupported, Usage
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import Metadata, f32, string, u32
from ggufsmith.convert.checkpoint import open_checkpoint
from ggufsmith.convert.gguf_names import source_names
from ggufsmith.convert.hf.classes import HfClass
from ggufsmith.convert.hf.further import CLASSES
from ggufsmith.convert.hf.run import Done, ToHfJob, prepare, run
from ggufsmith.convert.plan import _places
from ggufsmith.convert.rope import llama3_factors
from ggufsmith.convert.slots import Slot
from ggufsmith.convert.stored import StoredTensor
from ggufsmith.quantize.rows import decode
from requesting import request
from requesting import run as convert

Stored = Mapping[str, tuple[tuple[int, ...], str, bytes]]
Arrays = dict[str, tuple[Format, NDArray[np.uint8]]]
ONES = np.ones(256, np.float32)


def to_gguf(folder: Path, path: Path, outtype: str = "f32") -> Path:
    convert(request(folder, outtype=outtype, outfile=path))
    return path


def to_hf(source: Path, folder: Path, dtype: str | None = None, **options: Any) -> Done:
    with prepare(ToHfJob(source, folder, dtype, sync=False, **options)) as prepared:
        return run(prepared)


def of_folder(folder: Path) -> Stored:
    found = {}
    with open_checkpoint(folder) as checkpoint:
        for source in checkpoint.tensors.values():
            data = bytearray(source.nbytes)
            checkpoint.read_into(source, 0, memoryview(data))
            found[source.name] = (source.shape, source.dtype, bytes(data))
    return found


def of_gguf(path: Path) -> Stored:
    data = path.read_bytes()
    with open_gguf(path) as file:
        return {t.name: (t.shape, t.format.name, data[t.offset : t.offset + t.nbytes]) for t in file.tensors.values()}


def opened(path: Path) -> tuple[Metadata, Arrays]:
    """Everything in a GGUF file, for changing it."""
    with open_gguf(path) as file:
        metadata = dict(file.metadata)
    arrays = {}
    for name, (shape, kind, data) in of_gguf(path).items():
        form = BY_NAME[kind]
        arrays[name] = (form, np.frombuffer(data, np.uint8).reshape(*shape[:-1], form.nbytes(shape[-1:])))
    return metadata, arrays


def settings(folder: Path, name: str = "config.json") -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return config


def ends(folder: Path) -> list[int]:
    """Every id that generation_config.json takes for an end."""
    stated = settings(folder, "generation_config.json")["eos_token_id"]
    return sorted(stated) if isinstance(stated, list) else [stated]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return to_gguf(checkpoints.write("llama", folder / "source"), folder / "llama.gguf")


def bfloat16(data: bytes) -> NDArray[np.float32]:
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_round_trip_is_exact_for_every_kind(kind: str, tmp_path: Path) -> None:
    source = checkpoints.write(kind, tmp_path / "source")
    done = to_hf(to_gguf(source, tmp_path / "m.gguf"), tmp_path / "back", "bfloat16")
    assert done.notes == ()
    before, after = of_folder(source), of_folder(done.folder)
    assert {name: value[:2] for name, value in after.items()} == {name: value[:2] for name, value in before.items()}
    for name in before:
        if before[name] != after[name]:  # a norm of Gemma so close to zero that 1 + x rounds it in float32
            x, y = bfloat16(before[name][2]), bfloat16(after[name][2])
            assert kind.startswith("gemma") and name.endswith("norm.weight")
            assert (np.abs(x[x != y]) < 2**-16).all() and (np.abs(x - y) <= 2**-24).all()
    was, now = settings(source), settings(done.folder)
    if kind == "mistral":  # GGUF calls it llama
        was |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "sliding_window": None}
    scaling = was.get("rope_scaling")
    if scaling and "type" in scaling:
        was["rope_scaling"] = {"rope_type": scaling.pop("type"), **scaling}
    if kind == "llama-3":
        was["eos_token_id"] = now["eos_token_id"]  # tokenizer_config.json names another, which wins
    was.pop("decoder_sparse_step", None)  # 1, the default
    assert {key: now.get(key) for key in was} == was
    assert ends(done.folder) == ends(source)


@pytest.mark.parametrize("kind", ["llama-bias", "llama-3", "mixtral", "qwen2-moe", "phi3", "gemma3"])
def test_f16_file_comes_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    folder = checkpoints.write(kind, tmp_path / "source")
    first = to_gguf(folder, tmp_path / "first.gguf", "f16")
    to_hf(first, tmp_path / "back")
    second = to_gguf(tmp_path / "back", tmp_path / "second.gguf", "f16")
    assert of_gguf(second) == of_gguf(first)
    a, b = opened(first)[0], opened(second)[0]
    assert b == a


def test_quantized_weights_are_dequantized_and_told(llama: Path, tmp_path: Path) -> None:
    small = tmp_path / "q.gguf"
    convert(request(llama, "q8_0", outfile=small))
    with prepare(ToHfJob(small, tmp_path / "back", sync=False)) as prepared:
        assert any("dequantized (16 Q8_0)" in note for note in prepared.notes), prepared.notes
        run(prepared)
    shape, kind, data = of_folder(tmp_path / "back")["model.layers.1.mlp.down_proj.weight"]
    form, blocks = opened(small)[1]["blk.1.ffn_down.weight"]
    expected = np.empty(shape, np.float32)
    decode(form, blocks, expected)
    assert kind == "F16"
    np.testing.assert_array_equal(np.frombuffer(data, "<f2").reshape(shape), expected.astype(np.float16))


def test_blocks_are_put_back_in_order_as_weights_are(tmp_path: Path) -> None:
    """Permuting and unstacking rows of blocks, then dequantizing, is dequantizing first."""
    source = to_gguf(checkpoints.write("mixtral", tmp_path / "source"), tmp_path / "m.gguf")
    small, wide = tmp_path / "q.gguf", tmp_path / "w.gguf"
    for given, recipe, path in ((source, "q4_K_M", small), (small, "f32", wide)):
        convert(request(given, recipe, outfile=path, allow_requantize=True))
    to_hf(small, tmp_path / "a", "float32")
    to_hf(wide, tmp_path / "b", "float32")
    assert of_folder(tmp_path / "a") == of_folder(tmp_path / "b")


def test_shards_with_an_index_hold_the_same(llama: Path, tmp_path: Path) -> None:
    to_hf(llama, tmp_path / "one", "float16")
    to_hf(llama, tmp_path / "many", "float16", shard_size=500_000)
    names = sorted(path.name for path in (tmp_path / "many").glob("model-*.safetensors"))
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in of_folder(tmp_path / "one").values())
    assert of_folder(tmp_path / "many") == of_folder(tmp_path / "one")
    sizes = [(tmp_path / "many" / name).stat().st_size for name in names]
    assert max(sizes) < 520_000


def test_names_are_kept_by_a_model_card(tmp_path: Path, llama: Path) -> None:
    metadata, arrays = opened(llama)
    told = {"general.name": string("Größe 7: x"), "general.license": string("mit")}
    source = write_gguf(tmp_path / "m.gguf", {**metadata, **told, "general.sampling.temp": f32(0.6)}, arrays)
    to_hf(source, tmp_path / "back")
    again = opened(to_gguf(tmp_path / "back", tmp_path / "again.gguf"))[0]
    assert {key: again[key] for key in told} == told
    assert again["general.sampling.temp"] == f32(0.6)


@pytest.mark.parametrize("known", CLASSES, ids=lambda known: known.name)
def test_every_name_is_one_that_the_conversion_knows(known: HfClass) -> None:
    """And the conversion makes of it the tensors that the class makes it of."""
    record = known.record
    names = source_names(record.known, 2)

    def made_of(name: str) -> set[str]:
        source = StoredTensor(name, (), "F32", Path(), 0, 0)
        return {slot.name for slot, _ in _places(record, names, source, name)}

    for name, parts in known.sources.items():
        assert {part.format(bid=1) for part in parts} == made_of(name.format(bid=1))
    whole = {part.format(bid=1) for parts in known.sources.values() for part in parts}
    for rule in record.tensors:
        ours = Slot(rule.tensor, 1, rule.part).name
        if ours not in whole and "mtp" not in rule.on:
            name = f"{known.tensor_name(rule.tensor)}.{rule.part}".format(bid=1, xid=1)
            assert made_of(name) == {Slot(rule.tensor, 1 if ".1." in name else None, rule.part).name}


def longrope(config: dict[str, Any]) -> dict[str, Any]:
    half = config["hidden_size"] // config["num_attention_heads"] // 4  # of the half that rotates
    factors = {f"{kind}_factor": [1.0 + 0.125 * k for k in range(half)] for kind in ("long", "short")}
    return {
        "partial_rotary_factor": 0.5,
        "max_position_embeddings": 8192,
        "rope_scaling": {"type": "longrope", **factors},
    }


def test_longrope_and_partial_rotation_come_back(tmp_path: Path) -> None:
    changes = longrope(checkpoints.config_of("phi3"))
    source = to_gguf(checkpoints.write("phi3", tmp_path / "source", **changes), tmp_path / "m.gguf")
    to_hf(source, tmp_path / "back")
    config = settings(tmp_path / "back")
    assert config["partial_rotary_factor"] == 0.5
    assert config["original_max_position_embeddings"] == 2048
    factors = {name: changes["rope_scaling"][name] for name in ("long_factor", "short_factor")}
    assert config["rope_scaling"] == {"rope_type": "longrope", **factors}
    again = to_gguf(tmp_path / "back", tmp_path / "again.gguf")
    assert of_gguf(again) == of_gguf(source)
    metadata, arrays = opened(source)
    attention = metadata["phi3.rope.scaling.attn_factor"].data
    assert isinstance(attention, float)
    for off, good in ((1 + 1e-7, True), (1.01, False)):  # another library's logarithm; another model's factor
        changed = {**metadata, "phi3.rope.scaling.attn_factor": f32(attention * off)}
        job = ToHfJob(write_gguf(tmp_path / "off.gguf", changed, arrays), tmp_path / "off")
        with nullcontext() if good else pytest.raises(Malformed, match="attn_factor"):
            prepare(job).source.close()


def without(*names: str) -> Callable[[Metadata, Arrays], None]:
    def change(metadata: Metadata, arrays: Arrays) -> None:
        for name in names:
            (metadata if name in metadata else arrays).pop(name)  # type: ignore[attr-defined]

    return change


def setting(**keys: Any) -> Callable[[Metadata, Arrays], None]:
    return lambda metadata, arrays: metadata.update({key.replace("__", "."): value for key, value in keys.items()})


def adding(name: str, values: NDArray[np.float32] = ONES) -> Callable[[Metadata, Arrays], None]:
    def change(metadata: Metadata, arrays: Arrays) -> None:
        arrays[name] = (BY_NAME["F32"], values.view(np.uint8))

    return change


REFUSED: dict[str, tuple[Callable[[Metadata, Arrays], None], type[Failure], str]] = {
    "no architecture": (without("general.architecture"), Malformed, "general.architecture: the key is missing"),
    "adapter": (setting(general__type=string("adapter")), Unsupported, "this is a LoRA adapter"),
    "unknown architecture": (setting(general__architecture=string("gptj")), Unsupported, "arcee, bloom, "),
    "experts without a class": (
        setting(general__architecture=string("qwen2"), qwen2__expert_count=u32(4)),
        Unsupported,
        "with experts",
    ),
    "missing size": (without("llama.embedding_length"), Malformed, "llama.embedding_length: the key is missing"),
    "size of another type": (setting(llama__embedding_length=string("x")), Unsupported, "one number is expected"),
    "contradicting shape": (setting(llama__feed_forward_length=u32(512)), Unsupported, "the config says"),
    "contradicting key": (setting(llama__vocab_size=u32(9)), Malformed, "llama.vocab_size is 9, but would become 904"),
    "no vocabulary": (without("tokenizer.ggml.model"), Malformed, "no vocabulary"),
    "another tokenizer": (setting(tokenizer__ggml__model=string("rwkv")), Unsupported, "only llama, gpt2"),
    "no scores": (without("tokenizer.ggml.scores"), Malformed, "no scores"),
    "no embedding": (without("token_embd.weight"), Malformed, "no weights"),
    "missing tensor": (without("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"), Unsupported, "source is missing"),
    "uneven blocks": (without("blk.1.ffn_up.weight"), Malformed, "blk.1.ffn_up.weight"),
    "tensor without a place": (adding("blk.0.attn_q_norm.weight"), Unsupported, "do not belong to LlamaForCausalLM"),
    "block of a tensor that has none": (adding("blk.0.token_embd.weight"), Unsupported, "do not belong to"),
    "bias alone": (adding("blk.0.attn_q.bias"), Unsupported, "cannot hold blk.0.attn_q.bias alone"),
    "strange rope factors": (
        adding("rope_freqs.weight", np.linspace(1, 3, 32, dtype=np.float32)),
        Unsupported,
        "not follow any known scaling",
    ),
    "scaling without a name": (setting(llama__rope__scaling__type=string("longrope")), Unsupported, "rope scaling"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_in_such_a_folder_is_refused(name: str, llama: Path, tmp_path: Path) -> None:
    change, kind, text = REFUSED[name]
    metadata, arrays = opened(llama)
    change(metadata, arrays)
    source = write_gguf(tmp_path / "m.gguf", metadata, arrays)
    with pytest.raises(kind) as error:
        prepare(ToHfJob(source, tmp_path / "back"))
    assert text in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_llama3_factors_that_differ_in_the_last_bit_are_recognised(tmp_path: Path) -> None:
    """Converters compute the power in different libraries."""
    source = to_gguf(checkpoints.write("llama-3", tmp_path / "source"), tmp_path / "m.gguf")
    metadata, arrays = opened(source)
    made = np.array(llama3_factors(128, 5e5, factor=32.0, low=1.0, high=4.0, context=8192), np.float32)
    nudged = np.where(made > 1, np.nextafter(made, np.float32(64)), made)
    arrays["rope_freqs.weight"] = (BY_NAME["F32"], np.where(made == 32, made, nudged).view(np.uint8))
    to_hf(write_gguf(tmp_path / "n.gguf", metadata, arrays), tmp_path / "back")
    assert settings(tmp_path / "back")["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_a_folder_with_something_in_it_is_not_touched(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "back").mkdir()
    to_hf(llama, tmp_path / "back")  # an empty one is taken
    before = {path: path.read_bytes() for path in (tmp_path / "back").iterdir()}
    with pytest.raises(OutputConflict, match="not an empty folder"):
        to_hf(llama, tmp_path / "back")
    assert {path: path.read_bytes() for path in (tmp_path / "back").iterdir()} == before


def test_an_error_on_the_way_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    metadata, arrays = opened(llama)
    form, data = arrays["blk.1.ffn_down.weight"]
    values = data.copy().view(np.float32)
    values[-1, -1] = np.nan
    arrays["blk.1.ffn_down.weight"] = (form, values.view(np.uint8))
    source = write_gguf(tmp_path / "m.gguf", metadata, arrays)
    with pytest.raises(Malformed, match="NaN") as error:
        to_hf(source, tmp_path / "back")
    assert "mlp.down_proj" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


def test_weights_that_float16_cannot_hold_name_the_way_out(llama: Path, tmp_path: Path) -> None:
    metadata, arrays = opened(llama)
    form, data = arrays["output.weight"]
    values = data.copy().view(np.float32)
    values[3, 5] = 1e6
    source = write_gguf(tmp_path / "m.gguf", metadata, {**arrays, "output.weight": (form, values.view(np.uint8))})
    with pytest.raises(Unsupported, match="--dtype bfloat16") as error:
        to_hf(source, tmp_path / "back", "float16")
    assert "lm_head.weight" in str(error.value) and "row 3, column 5" in str(error.value)


def test_an_interrupt_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    def interrupt(weights: int) -> None:
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".lock", ".partial"]
        raise KeyboardInterrupt

    with prepare(ToHfJob(llama, tmp_path / "back", sync=False)) as prepared, pytest.raises(KeyboardInterrupt):
        run(prepared, advance=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_kill(llama: Path, tmp_path: Path) -> None:
    """The first has its own exit code, the second leaves nothing that the next run does not take away."""
    arguments = ("to-hf", llama, "--outdir", tmp_path / "back")
    done = run_faulty("full", "fsync", 2, *arguments)
    assert done.returncode == NoSpace.code, done.stderr
    assert list(tmp_path.iterdir()) == []
    run_faulty("SIGKILL", "fsync", 2, *arguments)
    assert len(list(tmp_path.glob("*.partial"))) == 1
    to_hf(llama, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_unknown_dtype_is_a_usage_error(llama: Path) -> None:
    with pytest.raises(Usage, match="float32, float16, bfloat16"):
        prepare(ToHfJob(llama, dtype="int8"))


def test_default_folder_is_named_after_the_file(llama: Path) -> None:
    with prepare(ToHfJob(llama)) as prepared:
        assert prepared.folder == llama.with_name("llama-hf")
