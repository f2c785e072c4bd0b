"""SentencePiece models as protocol buffers: what the library skips, our reader skips."""

from pathlib import Path

import pytest

from ggufsmith.container.errors import Malformed
from ggufsmith.tokenizer.proto import charsmap, piece_types
from ggufsmith.tokenizer.spm import parse_pieces
from vocabularies import sentencepiece_model

MODEL = sentencepiece_model(900, unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
WHERE = Path("tokenizer.model")
BEGIN, END = b"\xc3\x0c", b"\xc4\x0c"  # of group 200
GROUPS = {
    "empty": BEGIN + END,
    "with fields": BEGIN + b"\x08\x05\x12\x02ab\x1d\0\0\0\0\x21" + bytes(8) + END,
    "inside each other": BEGIN + b"\x0b\x0a\x01x\x0c" + END,
}


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("ahead", [True, False])
def test_groups_are_skipped(group: bytes, ahead: bool) -> None:
    grouped = group + MODEL if ahead else MODEL + group
    assert parse_pieces(grouped, WHERE) == parse_pieces(MODEL, WHERE)
    assert piece_types(grouped) == piece_types(MODEL) and charsmap(grouped) == charsmap(MODEL)


@pytest.mark.parametrize("broken", [BEGIN, END, BEGIN + b"\x0c", BEGIN * 100_000, b"\x0e", b"\x0f"])
def test_a_broken_group_is_malformed(broken: bytes) -> None:
    with pytest.raises(Malformed, match="not a SentencePiece model") as raised:
        parse_pieces(MODEL + broken, WHERE)
    assert raised.value.where == str(WHERE)
    with pytest.raises(ValueError, match="not a protocol buffer"):
        piece_types(MODEL + broken)
