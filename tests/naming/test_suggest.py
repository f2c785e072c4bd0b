"""Names made from headers."""

import pytest

from ggufsmith.container.values import Metadata, string, u32
from ggufsmith.naming.filename import FileName, parse
from ggufsmith.naming.suggest import disagreements, encoding_of, name_of

MIXTRAL: Metadata = {
    "general.type": string("model"),
    "general.name": string("Mixtral 8x7B Instruct v0.1"),
    "general.basename": string("Mixtral"),
    "general.finetune": string("Instruct"),
    "general.version": string("v0.1"),
    "general.size_label": string("8x7B"),
    "general.file_type": u32(15),
}
TENSORS = {"token_embd.weight": (32000, 4096), "blk.0.ffn_up.weight": (14336, 4096)}


def named(
    changes: Metadata, drop: tuple[str, ...] = (), tensors: dict[str, tuple[int, ...]] = TENSORS, **options
) -> str:  # type: ignore[no-untyped-def]
    metadata = {key: value for key, value in {**MIXTRAL, **changes}.items() if key not in drop}
    return name_of(metadata, tensors, **options).format()


def test_from_all_keys() -> None:
    assert named({}) == "Mixtral-8x7B-Instruct-v0.1-Q4_K_M.gguf"
    assert named({}, encoding="MXFP4", shard=(2, 3)) == "Mixtral-8x7B-Instruct-v0.1-MXFP4-00002-of-00003.gguf"


def test_the_size_is_counted_where_it_is_not_said() -> None:
    assert (
        named({"general.name": string("Some")}, drop=("general.size_label",))
        == "Mixtral-190M-Instruct-v0.1-Q4_K_M.gguf"
    )


def test_what_the_keys_leave_out_is_taken_from_the_name() -> None:
    gone = ("general.basename", "general.finetune", "general.version", "general.size_label")
    assert named({}, drop=gone) == "Mixtral-8x7B-Instruct-v0.1-Q4_K_M.gguf"
    assert named({"general.name": string("My Own Model")}, drop=gone) == "My-Own-Model-190M-Q4_K_M.gguf"
    assert named({}, drop=(*gone, "general.name")) == "model-190M-Q4_K_M.gguf"


def test_the_letter_of_the_convention() -> None:
    bare = ("general.version",)
    assert named({"general.name": string("Some")}, drop=bare) == "Mixtral-8x7B-Instruct-Q4_K_M.gguf"
    assert named({"general.name": string("Some")}, drop=bare, strict=True) == "Mixtral-8x7B-Instruct-v1.0-Q4_K_M.gguf"
    assert named({"general.version": string("2.5")}) == "Mixtral-8x7B-Instruct-v2.5-Q4_K_M.gguf"


def test_other_kinds_of_files() -> None:
    assert named({"general.type": string("adapter")}).endswith("-Q4_K_M-LoRA.gguf")
    assert named({"general.type": string("mmproj")}).startswith("mmproj-Mixtral-")
    assert named({}, tensors={}).endswith("-v0.1-vocab.gguf")
    assert named({"split.count": u32(3)}, tensors={}).endswith("-Q4_K_M.gguf")


def test_nothing_leads_out_of_the_folder() -> None:
    assert named({"general.basename": string("../../etc/x y"), "general.finetune": string("/\n")}) == (
        "..-..-etc-x-y-8x7B-Instruct-v0.1-Q4_K_M.gguf"
    )


@pytest.mark.parametrize(
    ("value", "encoding"),
    [(u32(0), "F32"), (u32(1), "F16"), (u32(7), "Q8_0"), (u32(32), "BF16"), (u32(1024), None), (u32(999), None)],
)
def test_encodings(value: object, encoding: str | None) -> None:
    assert encoding_of({"general.file_type": value}) == encoding  # type: ignore[dict-item]
    assert encoding_of({"general.file_type": string("1")}) is None
    assert encoding_of({}) is None


def test_disagreements() -> None:
    header = FileName("Mixtral", "8x7B", encoding="Q4_K_M")
    assert list(disagreements(parse("Mixtral-8x7B-Q4_79BPW.gguf"), header)) == []  # a recipe of one's own
    assert list(disagreements(parse("mixtral-8x7b-q4_k_m.gguf"), header)) == []
    assert list(disagreements(parse("Mixtral-7B-v0.1-Q8_0.gguf"), header)) == [
        "size label: the name says 7B, the header 8x7B",
        "encoding: the name says Q8_0, the header Q4_K_M",
    ]
