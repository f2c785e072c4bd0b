"""The pre-tokenizer is found from the structure of tokenizer.json."""

import json
from pathlib import Path

import pytest
from vocabulary_folders import Json, added, folder_of, put, read

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.tokenizer import pretokenizers
from ggufsmith.tokenizer.pretokenizers import LLAMA3, QWEN2, TABLE, match, named, stages_of

HERE = Path("tokenizer.json")


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


def sequence(*nodes: Json) -> Json:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(nodes)}}


TO_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def test_names_are_unique() -> None:
    names = [name for row in TABLE for name in {row.name, *row.aliases, *row.marks}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("row", [row for row in TABLE if row.stages], ids=lambda row: row.name)
def test_every_row_with_stages_is_reached(row: pretokenizers.Pretokenizer) -> None:
    tokens = {token for group in row.marks.values() for token in group} if row.name in row.marks else set()
    for stages in row.stages:
        found = [match(stages, row.ignore_merges, known, HERE)[1] for known in (tokens, set())]
        assert row in found


@pytest.mark.parametrize(
    ("tokenizer", "ignore_merges", "tokens", "name"),
    [
        (sequence(split(LLAMA3), TO_BYTES), True, [], "llama-bpe"),
        (sequence(split(LLAMA3), TO_BYTES), False, [], "dbrx"),
        (sequence(split(LLAMA3), TO_BYTES), False, ["<|begin_of_text|>"], "smaug-bpe"),
        (sequence(split(LLAMA3), TO_BYTES), True, ["[gMASK]"], "glm4"),
        (sequence(split(LLAMA3), TO_BYTES), False, ["[gMASK]"], "chatglm-bpe"),
        (sequence(split(QWEN2), TO_BYTES), False, [], "qwen2"),
        (sequence(split(QWEN2), TO_BYTES), False, ["<｜begin▁of▁sentence｜>"], "deepseek-r1-qwen"),
        (sequence(split(QWEN2, "Removed", True), TO_BYTES), False, [], "qwen2"),
        ({"pre_tokenizer": GPT2}, False, [], "gpt-2"),
        ({"pre_tokenizer": {**GPT2, "use_regex": True}}, False, ["<|padding|>"], "olmo"),
        (sequence(DIGITS, GPT2), False, [], "smollm"),
        (sequence(DIGITS, GPT2), False, ["<repo_name>", "<fim_prefix>"], "starcoder"),
        (sequence(DIGITS, GPT2), False, ["<reponame>", "<fim_prefix>"], "refact"),
        (sequence({"type": "Sequence", "pretokenizers": [DIGITS, GPT2]}), False, [], "smollm"),
        (
            sequence(split("\\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(pretokenizers.DEEPSEEK3), TO_BYTES),
            False,
            [],
            "deepseek-v3",
        ),
    ],
)
def test_published_structures(tokenizer: Json, ignore_merges: bool, tokens: list[str], name: str) -> None:
    assert match(stages_of(tokenizer, HERE), ignore_merges, tokens, HERE)[0] == name


def test_line_ends_in_a_regex_may_be_written_out() -> None:
    assert stages_of(sequence(split("[\r\n]\t")), HERE) == stages_of(sequence(split(r"[\r\n]\t")), HERE)


@pytest.mark.parametrize(
    "node",
    [
        split(QWEN2, "Removed"),
        split(QWEN2, "Isolated", True),
        split(QWEN2, "MergedWithNext"),
        {**split(QWEN2), "pattern": {"String": QWEN2}},
        split(QWEN2 + "|x"),
    ],
)
def test_what_only_resembles_a_known_split_is_refused(node: Json) -> None:
    with pytest.raises(Unsupported):
        match(stages_of(sequence(node, TO_BYTES), HERE), False, (), HERE)


def test_a_prefix_space_is_not_ignored() -> None:
    with pytest.raises(Unsupported, match=r"ByteLevel\+regex\+prefix"):
        match(stages_of({"pre_tokenizer": {**GPT2, "add_prefix_space": True}}, HERE), False, (), HERE)


def test_a_fine_tune_with_more_added_tokens_still_matches(tmp_path: Path) -> None:
    """The hash of an encoded probe failed for these (llama.cpp issues 22700, 27277, 19715)."""

    def more(tokenizer: Json) -> None:
        tokenizer["added_tokens"] += [added(604 + i, text) for i, text in enumerate(["\n", "  ", "🚀", "'ll", "33"])]

    assert read(folder_of("llama3-bpe", tmp_path / "a", tokenizer=more)).pre == "llama-bpe"
    assert read(folder_of("qwen2-bpe", tmp_path / "b", tokenizer=more)).pre == "qwen2"


def unknown(tokenizer: Json) -> None:
    stage = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    stage["Regex"] = stage["Regex"].replace("{1,3}", "{1,4}")


def test_an_unknown_split_is_shown_with_its_nearest(tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        read(folder_of("llama3-bpe", tmp_path, tokenizer=unknown))
    text = str(caught.value)
    assert r"\p{N}{1,4}" in text
    assert "nearest is llama-bpe" in text
    assert "--pre NAME" in text
    assert "tokenizer.json" in text


def test_a_tokenizer_without_a_pretokenizer(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="splits text like this one: none"):
        read(folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t.update(pre_tokenizer=None)))


def test_the_override_decides(tmp_path: Path) -> None:
    folder = folder_of("llama3-bpe", tmp_path, tokenizer=unknown)
    assert read(folder, pre="deepseek-v3").pre == "deepseek-v3"
    assert read(folder, pre="llama3").pre == "llama3"


def test_an_unknown_override_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"'qwen3'") as caught:
        read(folder_of("qwen2-bpe", tmp_path), pre="qwen3")
    assert "qwen2" in str(caught.value).split("Known:")[0]
    assert named("qwen2").name == "qwen2"


def test_ignore_merges_that_no_row_has_is_reported(tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t["model"].update(ignore_merges=True))
    vocabulary = read(folder)
    assert vocabulary.pre == "qwen2"
    assert any("ignore_merges" in note for note in vocabulary.notes)


@pytest.mark.parametrize(
    "value", ["ByteLevel", [], {}, {"type": 3}, {"type": "Sequence"}, {"type": "Sequence", "pretokenizers": [3]}]
)
def test_damaged_sections(value: object, tmp_path: Path) -> None:
    folder = folder_of("qwen2-bpe", tmp_path, tokenizer=lambda t: t.update(pre_tokenizer=value))
    with pytest.raises(Malformed, match="pre_tokenizer"):
        read(folder)


def test_sequences_nested_without_end(tmp_path: Path) -> None:
    node: Json = dict(GPT2)
    for _ in range(40):
        node = {"type": "Sequence", "pretokenizers": [node]}
    folder = folder_of("qwen2-bpe", tmp_path)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    put(folder, "tokenizer.json", {**tokenizer, "pre_tokenizer": node})
    with pytest.raises(Unsupported, match="Sequence"):
        read(folder)
