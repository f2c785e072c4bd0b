"""File names: the specification's examples, names in the wild, and the round trip."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container.errors import Usage
from ggufsmith.naming.filename import FileName, output_name, parse, shard_name

# GGUF specification (ggml, docs/gguf.md), "Validating Above Naming Convention", and names as published.
EXAMPLES = {
    "Mixtral-8x7B-v0.1-KQ2.gguf": FileName("Mixtral", "8x7B", version="v0.1", encoding="KQ2"),
    "Hermes-2-Pro-Llama-3-8B-F16.gguf": FileName("Hermes-2-Pro-Llama-3", "8B", encoding="F16"),
    "Hermes-2-Pro-Llama-3-8B-v1.0-F16.gguf": FileName("Hermes-2-Pro-Llama-3", "8B", version="v1.0", encoding="F16"),
    "Grok-100B-v1.0-Q4_0-00003-of-00009.gguf": FileName("Grok", "100B", version="v1.0", encoding="Q4_0", shard=(3, 9)),
    "Phi-3-mini-3.8B-ContextLength4k-instruct-v1.0.gguf": FileName(
        "Phi-3-mini", "3.8B-ContextLength4k", "instruct", "v1.0"
    ),
    "mtp-Qwen3-27B-v1.0-Q4_K_M.gguf": FileName("Qwen3", "27B", version="v1.0", encoding="Q4_K_M", sidecar="mtp"),
    "mmproj-Qwen2-VL-7B-v1.0-F16.gguf": FileName("Qwen2-VL", "7B", version="v1.0", encoding="F16", sidecar="mmproj"),
    "not-a-known-arrangement.gguf": FileName("not-a-known-arrangement"),
    "DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf": FileName("DeepSeek-R1-Distill-Qwen", "7B", encoding="Q4_K_M"),
    "TinyLlama-1.1B-Chat-v1.0-IQ2_XXS.gguf": FileName("TinyLlama", "1.1B", "Chat", "v1.0", "IQ2_XXS"),
    "Llama-3-8B-v1.0-F16-LoRA.gguf": FileName("Llama-3", "8B", version="v1.0", encoding="F16", type="LoRA"),
    "gpt2-vocab.gguf": FileName("gpt2", type="vocab"),
    "7B.gguf": FileName("7B"),
    "F16.gguf": FileName("F16"),
}
CONFORMING = ["Mixtral", "Grok", "Phi-3", "mtp-", "mmproj-", "TinyLlama", "Llama-3", "Hermes-2-Pro-Llama-3-8B-v1.0"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    assert parse(name) == EXAMPLES[name]
    assert EXAMPLES[name].format() == name
    assert parse(f"some/folder/{name}") == EXAMPLES[name]
    assert (not list(parse(name).problems())) == name.startswith(tuple(CONFORMING))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (FileName("A"), "no size label"),
        (FileName("A", "7 billion"), "size label '7 billion'"),
        (FileName("A", "7B-x"), "size label"),
        (FileName("A", "7B"), "no version"),
        (FileName("A", "7B", version="1.0"), "version '1.0'"),
        (FileName("A/B", "7B", version="v1"), "only letters"),
    ],
)
def test_problems(name: FileName, problem: str) -> None:
    assert any(problem in found for found in name.problems())


@pytest.mark.parametrize("name", ["", ".gguf", "model.bin", "model", "a/.gguf"])
def test_not_a_gguf_name(name: str) -> None:
    with pytest.raises(Usage):
        parse(name)


def test_shard_names() -> None:
    assert shard_name("model-Q8_0", 1, 3) == "model-Q8_0-00001-of-00003.gguf"
    for number, count in ((0, 3), (4, 3), (1, 0), (1, 100_000)):
        with pytest.raises(Usage):
            shard_name("model", number, count)


@pytest.mark.parametrize(
    ("model", "encoding", "name"),
    [
        ("DeepSeek-R1-Distill-Qwen-7B", "f16", "DeepSeek-R1-Distill-Qwen-7B-F16.gguf"),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Q4_K_M", "TinyLlama-1.1B-Chat-v1.0-Q4_K_M.gguf"),
        ("my model/", "q8_0", "my-model-Q8_0.gguf"),
    ],
)
def test_output_names(model: str, encoding: str, name: str) -> None:
    assert output_name(model, encoding) == name


@given(st.text(st.sampled_from("ab7BvxF16Q4_K-."), min_size=1), st.booleans())
def test_format_gives_back_what_was_parsed(stem: str, sharded: bool) -> None:
    name = shard_name(stem, 2, 10) if sharded else f"{stem}.gguf"
    assert parse(name).format() == name


@given(
    st.builds(
        FileName,
        base=st.sampled_from(["Llama-3", "Qwen2.5-Coder", "phi"]),
        size_label=st.sampled_from(["7B", "8x22B", "0.5B", "3.8B-ContextLength4k"]),
        fine_tune=st.sampled_from([None, "Instruct", "Chat-DPO"]),
        version=st.sampled_from(["v1.0", "v2", "v0.1.3"]),
        encoding=st.sampled_from([None, "F16", "Q4_K_M", "IQ1_S", "custom"]),
        type=st.sampled_from([None, "LoRA", "vocab"]),
        shard=st.sampled_from([None, (1, 1), (3, 12)]),
        sidecar=st.sampled_from([None, "mmproj", "mtp"]),
    )
)
def test_conforming_names_round_trip(name: FileName) -> None:
    assert parse(name.format()) == name
    assert not list(name.problems())
