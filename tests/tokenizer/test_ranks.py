"""Rank lists of tiktoken: which tokens and merges they amount to, and what is wrong with damaged ones."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf.constants import TokenType

import ranks as lists
from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.tokenizer.ranks import merges, read_ranks
from ggufsmith.tokenizer.read import read_vocabulary
from ggufsmith.tokenizer.vocabulary import Vocabulary
from vocabulary_parts import Files


def written(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path, size: int | None = None) -> Vocabulary:
    return read_vocabulary(folder, config={}, size=size, architecture="QWenLMHeadModel")


QWEN, GLM = (r"\p{N}", lists.qwen_ranks, "qwen2"), (r"\p{N}{1,3}", lists.glm_ranks, "chatglm-bpe")
KIMI, HUNYUAN = (r"\p{N}{1,3}", lists.kimi_ranks, "kimi-k2"), (r"\p{N}", lists.hunyuan_ranks, "hunyuan")


@pytest.mark.parametrize(("digits", "made", "pre"), [QWEN, GLM, KIMI, HUNYUAN], ids=["qwen", "glm", "kimi", "hunyuan"])
def test_merges_are_those_that_the_tokens_were_trained_with(
    digits: str, made: Callable[[], tuple[int, Files]], pre: str, tmp_path: Path
) -> None:
    size, files = made()
    found = read(written(files, tmp_path), size + 3)
    model = lists.trained(digits)
    assert found.merges == tuple(" ".join(pair) for pair in model["merges"])
    assert found.tokens[: len(model["vocab"])] == tuple(model["vocab"])
    assert (found.model, found.pre) == ("gpt2", pre)
    assert set(found.types[len(model["vocab"]) : size]) == {TokenType.CONTROL}
    assert set(found.types[size:]) == {TokenType.UNUSED}


def test_the_special_tokens_of_qwen_are_behind_the_ranks(tmp_path: Path) -> None:
    size, files = lists.qwen_ranks()
    found = read(written(files, tmp_path))
    assert found.tokens[-208:-204] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>")
    assert found.tokens[-1] == "<|extra_204|>" and len(found.tokens) == size
    assert {found.special[role] for role in ("bos", "eos", "unk")} == {size - 208}
    assert size - 206 in found.eog  # <|im_end|>, of generation_config.json


def test_tokens_of_kimi_have_names_or_are_reserved(tmp_path: Path) -> None:
    size, files = lists.kimi_ranks()
    found = read(written(files, tmp_path), size)
    first = size - 256
    assert found.tokens[first : first + 3] == ("[BOS]", "[EOS]", "<|im_end|>") and found.tokens[-1] == "[PAD]"
    assert found.tokens[first + 4] == f"<|reserved_token_{first + 4}|>" and "<|beyond|>" not in found.tokens
    assert found.types[first + 11] == TokenType.CONTROL  # although it is listed as an ordinary one
    assert {found.special[role] - first for role in ("bos", "eos")} == {0, 1}


def test_the_special_tokens_of_chatglm_are_behind_its_pieces(tmp_path: Path) -> None:
    size, files = lists.chatglm_spm()
    found = read(written(files, tmp_path), 920)
    assert found.tokens[900:902] == ("[MASK]", "[gMASK]") and found.tokens[size - 1] == "<|observation|>"
    assert set(found.types[900:size]) == {TokenType.CONTROL} and set(found.types[size:]) == {TokenType.UNUSED}


def test_a_tokenizer_json_beside_a_rank_list_counts(tmp_path: Path) -> None:
    _, files = lists.qwen_ranks()
    folder = written(files, tmp_path)
    whole = {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    assert read(folder).tokens == ("a", "b")


def test_a_token_that_its_bytes_are_not_joined_to_has_no_merge() -> None:
    ranks = {bytes((byte,)): byte for byte in range(256)} | {b"ab": 256, b"abcd": 257, b"cd": 258, b"abcde": 259}
    assert list(merges(ranks)) == [(b"a", b"b"), (b"c", b"d"), (b"abcd", b"e")]
    ranks |= {b"abcd": 260}
    assert (b"ab", b"cd") in list(merges(dict(sorted(ranks.items(), key=lambda item: item[1]))))


ALL = b"".join(base64.b64encode(bytes((byte,))) + b" %d\n" % byte for byte in range(256))
DAMAGED = {
    b"YQ== x\n": "does not end with a rank",
    b"YQ==\n": "does not end with a rank",
    b"YQ== 9999999999\n": "does not end with a rank",
    b"Y!Q= 256\n": "does not begin with a token in base64",
    b" 256\n": "has 0 bytes",
    b"YQ== 256\n": "the same token as an earlier one",
    b"YWE= 255\n": "two tokens have the same rank",
    base64.b64encode(bytes(2000)) + b" 256\n": "has 2000 bytes",
}


@pytest.mark.parametrize(("line", "said"), DAMAGED.items(), ids=DAMAGED.values())
def test_a_damaged_list(line: bytes, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        read_ranks(ALL + line, Path("qwen.tiktoken"))


def test_ranks_are_those_from_0_on() -> None:
    lines = (ALL + b"YWE= 256\nYWI= 257\n").splitlines(keepends=True)
    lost, shifted = lines[:256] + lines[257:], [b"%s %d\n" % (line.split()[0], k) for k, line in enumerate(lines, 1)]
    for damaged, said in ((lost, "no token has the rank 256"), (shifted, "no token has the rank 0")):
        with pytest.raises(Malformed, match=said):
            read_ranks(b"".join(damaged), Path("qwen.tiktoken"))


def test_ranks_that_are_counted_rise_from_line_to_line() -> None:
    lines = (ALL + b"YWE= 256\nYWE= 256\nYWI= 259\n").splitlines(keepends=True)
    assert list(read_ranks(b"".join(lines), Path("hy.tiktoken"), repeats=True).values()) == list(range(258))
    for damaged in (lines[::-1], lines[1:], [*lines[:99], lines[100], lines[99], *lines[101:]]):
        with pytest.raises(Malformed, match="ranks begin with 0 and rise from line to line"):
            read_ranks(b"".join(damaged), Path("hy.tiktoken"), repeats=True)


LISTS = {"qwen.tiktoken": lists.qwen_ranks, "tokenizer.model": lists.glm_ranks, "tiktoken.model": lists.kimi_ranks}


@pytest.mark.parametrize("lost", [1, 2, 3, 9])
@pytest.mark.parametrize("name", [*LISTS, "hy.tiktoken", "silent"])
def test_special_tokens_have_the_ids_that_other_files_say(name: str, lost: int, tmp_path: Path) -> None:
    size, files = LISTS.get(name, lists.hunyuan_ranks if name == "hy.tiktoken" else lists.kimi_ranks)()
    config: dict[str, object] = {}
    if name == "silent":  # about the names of its special tokens
        name, config = "tiktoken.model", {"bos_token_id": size - 256, "eos_token_id": [size - 254]}
        files["tokenizer_config.json"] = b'{"tokenizer_class": "TikTokenTokenizer"}'
    if name == "hy.tiktoken":
        config = {"bos_token_id": 1, "eos_token_id": size - 207, "pad_token_id": size - 206}
    folder = written(files, tmp_path)
    read_vocabulary(folder, config=config, size=None, architecture="")
    lines = files[name].splitlines(keepends=True)
    (folder / name).write_bytes(b"".join(lines[:-lost]))
    with pytest.raises(
        Malformed, match=rf"the list has {len(lines) - lost} tokens|_token_id is .* after the "
    ) as raised:
        read_vocabulary(folder, config=config, size=None, architecture="")
    assert name in str(raised.value.where)


WRONG_FILES = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n": "Run `git lfs pull`",
    b"": "the file is empty",
    b"\xef\xbb\xbf" + ALL: "line 1 does not begin with a token in base64",
    b"<!doctype html><html>\n": "line 1 does not begin with a token in base64",
    b"Y!Q= 0\n" + ALL: "line 1 does not begin with a token in base64",
}


@pytest.mark.parametrize(("content", "said"), WRONG_FILES.items(), ids=["lfs", "empty", "bom", "html", "line"])
@pytest.mark.parametrize("name", [*LISTS, "hy.tiktoken"])
def test_another_file_in_place_of_a_list(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    _, files = LISTS.get(name, lists.hunyuan_ranks)()
    with pytest.raises(Malformed, match=said) as raised:
        read(written({**files, name: content}, tmp_path))
    assert name in str(raised.value.where)


def test_a_list_without_a_byte() -> None:
    with pytest.raises(Malformed, match="the byte 0xFF is not a token"):
        read_ranks(ALL.rsplit(b"\n", 2)[0], Path("qwen.tiktoken"))


def test_a_special_token_that_is_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(ALL + base64.b64encode(b"<|im_end|>") + b" 256\n")
    with pytest.raises(Malformed, match="is an ordinary token as well"):
        read(tmp_path)


def test_a_list_of_another_model_is_refused(tmp_path: Path) -> None:
    _, files = lists.glm_ranks()
    folder = written(files, tmp_path)
    config = {**json.loads(files["tokenizer_config.json"]), "tokenizer_class": "OtherTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(Unsupported, match="there is no vocabulary"):
        read(folder)
