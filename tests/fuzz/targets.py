"""What is fuzzed: each function takes damaged inputs, and fails if they give anything but a result or a `Failure`.

    PYTHONPATH=fixtures:tests python tests/fuzz/targets.py TARGET FOLDER EXAMPLES SEED

runs one of them in this process, under limits of memory and time; test_fuzz.py does that for every target.
"""

import faulthandler
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import old_ggml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, damaged_json

import checkpoints
from ggufsmith.container.errors import Failure
from ggufsmith.container.formats import format_of
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.container.summary import summary
from ggufsmith.container.values import array, boolean, f32, i32, string, strings, u32, u64
from ggufsmith.convert.hf import run as hf
from ggufsmith.quantize.imatrix.read import open_imatrix
from ggufsmith.quantize.recipes.files import read_recipe, shipped
from requesting import opened, plan, request, run

MEMORY = 3 * 2**30  # bytes of address space; libraries alone reserve one and a half
F32 = format_of("F32")
SECONDS = 30  # for one input: none takes more than a few hundredths


def _gguf() -> tuple[bytes, int]:
    """A file with every kind of value, and where its tensor data begins."""
    layout = lay_out(
        {
            "general.architecture": string("llama"),
            "general.alignment": u32(64),
            "split.count": i32(1),
            "names": strings(["x", "yz", "é", ""]),
            "numbers": array(np.arange(3.0)),
            "flags": array(np.array([True, False])),
            "yes": boolean(True),
            "big": u64(2**60),
            "small": f32(0.5),
        },
        [TensorSpec("t", (2, 32), format_of("Q4_0")), TensorSpec("u", (3, 1, 2), format_of("F32"))],
        alignment=64,
    )
    return layout.header + bytes(layout.size - len(layout.header)), len(layout.header)


def gguf(folder: Path) -> Callable[[st.DataObject], None]:
    whole, header = _gguf()
    path = folder / "x.gguf"

    def target(data: st.DataObject) -> None:
        path.write_bytes(data.draw(damaged_bytes(whole[: header + 8]).map(lambda head: head + whole[header + 8 :])))
        with suppress(Failure), open_gguf_set(path) as model:
            json.dumps(summary(model))
            at = model.files[0].data_start
            for tensor in sorted(model.tensors.values(), key=lambda tensor: tensor.offset):
                if not at <= tensor.offset <= tensor.offset + tensor.nbytes <= model.size:
                    raise AssertionError(f"{tensor} is not where it can be, from {at} to {model.size}")
                at = tensor.offset + tensor.nbytes
                model.read_into(tensor, 0, bytearray(tensor.nbytes))

    return target


@contextmanager
def replaced(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)


def _model(kind: str, name: str, binary: bool = False) -> Callable[[Path], Callable[[st.DataObject], None]]:
    """Damage one file of a checkpoint."""

    def make(folder: Path) -> Callable[[st.DataObject], None]:
        model = checkpoints.write(kind, folder / "model", shards=2)
        whole = (model / name).read_bytes()
        damaged = damaged_bytes(whole) if binary else damaged_json(json.loads(whole))

        def target(data: st.DataObject) -> None:
            with replaced(model / name, data.draw(damaged)):
                vocab_only = data.draw(st.booleans())
                with suppress(Failure):
                    plan(request(model, vocab_only=vocab_only))

        return target

    return make


def safetensors_header(folder: Path) -> Callable[[st.DataObject], None]:
    """The header of a shard, its length made right again."""
    model = checkpoints.write("llama", folder / "model", shards=2)
    path = model / "model-00001-of-00002.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    tree = json.loads(whole[8:end])

    def target(data: st.DataObject) -> None:
        header = data.draw(damaged_json(tree))
        with replaced(path, len(header).to_bytes(8, "little") + header + whole[end:]), suppress(Failure):
            plan(request(model))

    return target


def front_matter(folder: Path) -> Callable[[st.DataObject], None]:
    """README.md and generation_config.json, which are descriptions: damage must not even stop the conversion."""
    model = checkpoints.write("qwen2", folder / "model")
    card = (
        b"---\nlicense: mit\nlanguage: [en, no]\nbase_model:\n- org/base-7B\ntags:\n  - a\n  - b\n"
        b"datasets: &d [x/y, *d]\nname: 'N'\nversion: 1.0\n---\n# Text\n"
    )
    sampling = json.loads((model / "generation_config.json").read_bytes())

    def target(data: st.DataObject) -> None:
        content = data.draw(damaged_bytes(card, 4))
        with (
            replaced(model / "README.md", content),
            replaced(model / "generation_config.json", data.draw(damaged_json({**sampling, "top_k": 5, "top_p": 0.5}))),
            suppress(Failure),
        ):
            plan(request(model, vocab_only=True))

    return target


def overrides(folder: Path) -> Callable[[st.DataObject], None]:
    """The file of --metadata."""
    model = checkpoints.write("qwen2", folder / "model")
    tree: dict[str, Any] = {
        "general.name": "x",
        "general.tags": ["a"],
        "general.base_models": [{"name": "b", "url": "c"}],
        "general.sampling.temp": 0.5,
    }
    path = folder / "metadata.json"

    def target(data: st.DataObject) -> None:
        path.write_bytes(data.draw(damaged_json(tree)))
        with suppress(Failure):
            plan(request(model, vocab_only=True, metadata=path))

    return target


ODD = st.one_of(
    st.sampled_from([u32(0), u32(2**32 - 1), u64(2**63), i32(-1), f32(float("nan")), f32(float("inf")), f32(0.5)]),
    st.sampled_from([boolean(True), string(""), string("../x"), string("llama"), strings([]), strings(["\udcff"])]),
    st.sampled_from([array(np.arange(0)), array(np.array([2, 1], "<i4")), array(np.array([np.nan]))]),
)


def _keys(kind: str, target: Callable[[Path], object]) -> Callable[[Path], Callable[[st.DataObject], None]]:
    """A GGUF file whose keys have other types and values than they should, and which lacks tensors."""

    def make(folder: Path) -> Callable[[st.DataObject], None]:
        whole = plan(request(checkpoints.write(kind, folder / "model"))).output.shards.whole
        metadata, tensors = whole.metadata, whole.tensors
        path = folder / "x.gguf"

        def damaged(data: st.DataObject) -> None:
            changes = data.draw(st.dictionaries(st.sampled_from([*metadata, "quantize.imatrix.file"]), ODD, min_size=1))
            kept = data.draw(st.sampled_from([tensors, tensors[:1], tensors[3:], ()]))
            changes.pop("general.alignment", None)
            layout = lay_out({**metadata, **changes}, kept)
            path.write_bytes(layout.header)
            os.truncate(path, layout.size)
            with suppress(Failure):
                target(path)

        return damaged

    return make


def quantizer(path: Path) -> None:
    with opened(request(path, "Q4_K_M")):
        pass


def to_hf(path: Path) -> None:
    hf.prepare(hf.ToHfJob(path)).source.close()


def old_ggml_file(folder: Path) -> Callable[[st.DataObject], None]:
    """A Llama file from before GGUF, damaged before its last tensors."""
    run(request(checkpoints.write("llama", folder / "model"), outfile=folder / "m.gguf"))
    with open_gguf(folder / "m.gguf") as model:
        whole = old_ggml.write("ggjt v3", model, folder / "m.bin").read_bytes()
    path = folder / "x.bin"

    def target(data: st.DataObject) -> None:
        path.write_bytes(data.draw(damaged_bytes(whole[:20000])) + whole[20000:])
        with suppress(Failure):
            quantizer(path)

    return target


def imatrix(folder: Path) -> Callable[[st.DataObject], None]:
    """Both formats of importance matrices."""
    width, names = 256, ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"]
    legacy = struct.pack("<i", len(names))
    for name in names:
        legacy += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 4, width) + bytes(4 * width)
    legacy += struct.pack("<ii", 7, 5) + b"a/txt"
    specs = [TensorSpec(name + end, (1, n), F32) for name in names for end, n in ((".in_sum2", width), (".counts", 1))]
    keys = {"imatrix.datasets": strings(["a"]), "imatrix.chunk_count": u32(4), "imatrix.chunk_size": u32(512)}
    layout = lay_out({"general.type": string("imatrix"), **keys}, specs)
    modern = layout.header + np.ones((layout.size - len(layout.header)) // 4, "<f4").tobytes()
    path = folder / "x"

    def target(data: st.DataObject) -> None:
        path.write_bytes(data.draw(damaged_bytes(data.draw(st.sampled_from([legacy, modern])))))
        with suppress(Failure):
            open_imatrix(path)

    return target


def recipe_file(folder: Path) -> Callable[[st.DataObject], None]:
    """A shipped recipe, damaged."""
    texts = [text.encode() for text in shipped().values()]
    path = folder / "x.toml"

    def target(data: st.DataObject) -> None:
        path.write_bytes(data.draw(damaged_bytes(data.draw(st.sampled_from(texts)))))
        with suppress(Failure):
            read_recipe(path)

    return target


TARGETS: dict[str, Callable[[Path], Callable[[st.DataObject], None]]] = {
    "gguf": gguf,
    "config": _model("llama-3", "config.json"),
    "config-moe": _model("qwen3-moe", "config.json"),
    "config-gemma": _model("gemma3", "config.json"),
    "index": _model("llama", "model.safetensors.index.json"),
    "safetensors": safetensors_header,
    "tokenizer-bpe": _model("qwen2", "tokenizer.json"),
    "tokenizer-fallback": _model("llama-linear", "tokenizer.json"),
    "tokenizer-config": _model("qwen2", "tokenizer_config.json"),
    "sentencepiece": _model("gemma2", "tokenizer.model", binary=True),
    "front-matter": front_matter,
    "overrides": overrides,
    "quantizer": _keys("qwen3-moe", quantizer),
    "to-hf": _keys("llama-3", to_hf),
    "to-hf-moe": _keys("mixtral", to_hf),
    "to-hf-gemma": _keys("gemma3", to_hf),
    "old-ggml": old_ggml_file,
    "imatrix": imatrix,
    "recipe": recipe_file,
}


def main(name: str, folder: Path, examples: int, start: int) -> None:
    faulthandler.enable()
    target = TARGETS[name](folder)
    with suppress(ImportError):  # Windows has no limits; there the time alone is watched
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    profile = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @profile
    @seed(start)
    @given(st.data())
    def fuzz(data: st.DataObject) -> None:
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            target(data)
        finally:
            faulthandler.cancel_dump_traceback_later()

    fuzz()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
