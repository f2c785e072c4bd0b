"""Windows are cut as llama-imatrix and llama-perplexity cut them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from ggufsmith.container.errors import Usage
from ggufsmith.evaluate.texts import TextDocument
from ggufsmith.evaluate.windows import ALL, make_windows


@dataclass(frozen=True)
class Letters:
    """One token for each character; BOS, if there is one, before each text."""

    bos: int | None = None
    chat_notes: tuple[str, ...] = ("laid out",)

    def __call__(self, text: str) -> NDArray[np.int32]:
        return np.array([*([] if self.bos is None else [self.bos]), *map(ord, text)], np.int32)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> NDArray[np.int32]:
        return self("".join(message["content"] for message in messages))


A, B = TextDocument("a", "abcdefgh", name="a.txt"), TextDocument("b", "ABCDEFGHIJK", name="b.txt")


def rows(*texts: str) -> list[list[int]]:
    return [[0 if c == "_" else ord(c) for c in text] for text in texts]


def test_one_token_is_one_and_an_importance_matrix_names_no_folders() -> None:
    with pytest.raises(Usage, match="the text of 'a' has 1 token, but one window has 4"):
        make_windows([TextDocument("a", "x", name="a.txt")], Letters(), context=4, chunks=None)
    both = [TextDocument(name, "abcdefgh", name=f"{name}.txt") for name in ("a/t", "b/t")]
    assert make_windows(both, Letters(), context=4, chunks=None).names == ("a/t.txt", "b/t.txt")
    assert make_windows(both, Letters(), context=4, chunks=None, by_domain=False).names == ("t.txt",)


def test_windows_longer_than_the_model_was_made_for_get_a_note() -> None:
    found = make_windows([B], Letters(), context=4, chunks=None, longest=3)
    assert found.notes == ("windows of 4 tokens are longer than the 3 that the model was made for",)
    assert make_windows([B], Letters(), context=4, chunks=None, longest=4).notes == ()


def test_a_text_is_cut_and_the_rest_dropped() -> None:
    found = make_windows([B], Letters(), context=4, chunks=None)
    assert found.tokens.tolist() == rows("ABCD", "EFGH") and found.tokens.dtype == np.int32
    assert (found.domains, found.names, found.notes) == (("b", "b"), ("b.txt",), ())


def test_bos_takes_the_first_place_of_every_window() -> None:
    """The text itself begins with one, which is the first of the first window."""
    found = make_windows([B], Letters(bos=0), context=4, chunks=None)
    assert found.tokens.tolist() == rows("_ABC", "_EFG", "_IJK")


def test_one_stream_for_each_domain_or_for_all() -> None:
    documents = [A, B, TextDocument("a", "ij", name="c.txt")]
    apart = make_windows(documents, Letters(), context=5, chunks=None)
    assert apart.tokens.tolist() == rows("abcde", "fghij", "ABCDE", "FGHIJ")
    assert apart.domains == ("a", "a", "b", "b") and apart.names == ("a.txt", "b.txt", "c.txt")
    whole = make_windows(documents, Letters(), context=5, chunks=None, by_domain=False)
    assert whole.tokens.tolist() == rows("abcde", "fghAB", "CDEFG", "HIJKi")
    assert whole.domains == (ALL,) * 4
    assert apart.digest != whole.digest
    assert whole.digest == hashlib.sha256(whole.tokens.astype("<i4").tobytes()).hexdigest()


def test_the_first_chunks_in_fair_shares() -> None:
    documents = [A, B]  # 4 and 5 windows of two tokens
    for chunks, expected in ((2, "ab"), (3, "aab"), (5, "aaabb"), (9, "aaaabbbbb"), (99, "aaaabbbbb")):
        found = make_windows(documents, Letters(), context=2, chunks=chunks)
        assert "".join(found.domains) == expected
    found = make_windows([TextDocument("a", "abc"), B], Letters(), context=2, chunks=5)
    assert found.tokens.tolist() == rows("ab", "AB", "CD", "EF", "GH")
    assert len(make_windows(documents, Letters(), context=2, chunks=1, by_domain=False).tokens) == 1


def test_one_window_is_enough() -> None:
    assert make_windows([A], Letters(), context=8, chunks=None).tokens.shape == (1, 8)


def test_chats_are_laid_out_and_that_is_said() -> None:
    chat = TextDocument("c", messages=({"role": "user", "content": "wxyz"},))
    found = make_windows([A, chat], Letters(), context=4, chunks=None)
    assert found.tokens.tolist() == rows("abcd", "efgh", "wxyz") and found.notes == ("laid out",)


def test_texts_that_are_too_short_are_named_with_their_tokens() -> None:
    with pytest.raises(Usage) as caught:
        make_windows([A, B, TextDocument("d", "xyz")], Letters(), context=9, chunks=None)
    assert str(caught.value).splitlines() == [
        "--text: the text of 'a' has 8 tokens, but one window has 9",
        "  - the text of 'd' has 3 tokens, but one window has 9",
        "Pass more text, or --context 3 or less to eval or imatrix.",
    ]
    with pytest.raises(Usage, match="the text has 8 tokens, but one window has 9"):
        make_windows([A], Letters(), context=9, chunks=None, by_domain=False)
    with pytest.raises(Usage, match=r"Pass more text\.$"):
        make_windows([TextDocument("d", "x")], Letters(), context=9, chunks=None)
    with pytest.raises(Usage, match=r"Pass more text\.$"):  # shorter windows would be too short to score
        make_windows([TextDocument("d", "xyz")], Letters(), context=9, chunks=None, shortest=4)


def test_other_contradictions() -> None:
    with pytest.raises(Usage, match="there is no text"):
        make_windows([], Letters(), context=4, chunks=None)
    with pytest.raises(Usage, match="at least 2 tokens, not 1"):
        make_windows([A], Letters(), context=1, chunks=None)
    with pytest.raises(Usage, match=r"1 is fewer than the 2 texts.*\nPass --chunks 2 or more"):
        make_windows([A, B], Letters(), context=4, chunks=1)
