"""Text to token ids, the same ids as llama.cpp's tokenizer gives for the vocabulary's file.

Source: src/llama-vocab.cpp of llama.cpp (`llama_vocab::impl::tokenize`, `tokenizer_st_partition`). Special tokens are
cut out first, longest first; what is left between them goes through the tokenizers library (byte-level BPE, and that
of Gemma 4, which falls back to bytes) or through sentencepiece (BPE by scores). Nothing is normalized, as llama.cpp
normalizes nothing.

Vocabularies that cannot be done, each an Unsupported that says why: those that `tokenizer.restore` refuses (WordPiece,
Unigram and others), the pre-tokenizers for which `stages_for` has no splits (gemma4 as the name of one, sarvam-moe,
afmoe, granite-embed-multi-97m, whitespace and their aliases), and merges into texts that are not tokens.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from gguf.constants import TokenType
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Unsupported
from ggufsmith.container.untrusted import shown
from ggufsmith.evaluate.chat import BOS, EOS, PLAIN, ChatFormat, Message, lay_out, recognised
from ggufsmith.tokenizer import pretokenizers
from ggufsmith.tokenizer.added import SPACE
from ggufsmith.tokenizer.proto import model_proto
from ggufsmith.tokenizer.special import EOG_TEXTS
from ggufsmith.tokenizer.stripping import MASKS, PHI3, SPECIAL, phi3_rstrip
from ggufsmith.tokenizer.vocabulary import Vocabulary

Ids = NDArray[np.int32]
Piece = str | int  # text, or the id of a token that stands for itself

# Texts that llama.cpp takes for control tokens whatever their type is; the roles only if no key names such a token.
_BY_ROLE: Mapping[str, str] = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
_HARMONY = frozenset("<|channel|> <|message|> <|start|> <|constrain|>".split())  # user-defined, whatever the file says
_DEFAULT_BOS = {"llama": 1, "gpt2": 11}  # Gemma 4 has none
_LINES = re.compile(r"[^\n]+|\n+")
_SPACE_BYTES = " \t\n\v\f\r"  # C's isspace, which is asked of single bytes

# Splits that llama.cpp makes otherwise than the publisher's regular expressions in `pretokenizers.TABLE`, or for which
# there are none. Their regular expressions are those of llama.cpp (`llm_tokenizer_bpe`).
_ENDING = f"{pretokenizers.ENGLISH}?"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+%s"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*%s"
    rf"|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{pretokenizers.SPACES}"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_OWN: Mapping[str, tuple[str, ...]] = {
    "gpt-4o": (_CASED % (_ENDING, _ENDING, r"\p{N}{1,3}"),),
    "tekken": (_CASED % ("", "", r"\p{N}"),),
    "tiny_aya": (rf"\p{{N}}{{1,3}}(?=(?:\p{{N}}{{3}})*(?!\p{{N}}))|{pretokenizers.GPT4O}",),
    "falcon3": (pretokenizers.LLAMA3,),
    "kimi-k2": (  # neither marks nor changes of case
        rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^\p{{Han}}]]+{_ENDING}"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{pretokenizers.SPACES}",
    ),
    "roberta-bpe": (_GPT2,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}


class Tokenize(Protocol):
    """Text to token ids."""

    @property
    def bos(self) -> int | None:
        """The token that begins every window (llama.cpp's `add_bos`); None if the vocabulary has none to add."""

    @property
    def chat_notes(self) -> tuple[str, ...]:
        """Sentences for the report on how chats are laid out."""

    def __call__(self, text: str) -> Ids:
        """The ids of a whole text, int32: BOS before it and EOS behind it where the vocabulary adds them."""

    def chat(self, messages: Sequence[Message]) -> Ids:
        """The ids of a chat (role, content), int32, laid out in the model's own format."""


@dataclass(frozen=True)
class _Special:
    """A token that is cut out of texts. lstrip, rstrip: it takes the white space before, or behind, it."""

    token: int
    text: str
    lstrip: bool
    rstrip: bool


@dataclass(frozen=True)
class TextTokenizer:
    """llama.cpp's tokenizer for one vocabulary.

    bos, eos:     the tokens that are put around a text; None if nothing is.
    cut:          the tokens that are cut out of any text: the user-defined ones, longest first.
    special:      all that are cut out of what a chat format puts around messages, longest first.
    format:       the chat format.
    chat_notes:   sentences for the report on how chats are laid out.
    roles:        the texts BOS and EOS -> what they stand for.
    spaced:       a space is put before a text and behind special tokens (SentencePiece's dummy prefix).
    encode_plain: the ids of a text without special tokens.
    """

    bos: int | None
    eos: int | None
    cut: tuple[_Special, ...]
    special: tuple[_Special, ...]
    format: ChatFormat
    chat_notes: tuple[str, ...]
    roles: Mapping[str, Piece]
    spaced: bool
    encode_plain: Callable[[str], list[int]]

    def __call__(self, text: str) -> Ids:
        return self.encode([piece for piece in (self.bos, text, self.eos) if piece is not None])

    def chat(self, messages: Sequence[Message]) -> Ids:
        """The ids of a chat, int32, with BOS before it if the vocabulary or the format puts it there."""
        pieces: list[Piece] = []
        for text, formal in lay_out(self.format, messages):
            pieces += self._formal(text) if formal else [text]
        pieces = _joined(pieces)
        if self.bos is not None and pieces[:1] != [self.bos]:
            pieces.insert(0, self.bos)
        return self.encode(pieces)

    def _formal(self, text: str) -> list[Piece]:
        """A text of the format with its special tokens as ids."""
        pieces = [self.roles.get(part, part) for part in re.split(f"({re.escape(BOS)}|{re.escape(EOS)})", text)]
        return _partition(self.special, pieces)

    def encode(self, pieces: Sequence[Piece]) -> Ids:
        """The ids of texts and tokens in this order. Only user-defined tokens are recognised within the texts."""
        ids: list[int] = []
        after_token = True
        for piece in _partition(self.cut, _joined(pieces)):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                ids += self.encode_plain(f" {piece}" if self.spaced and after_token else piece)
            after_token = isinstance(piece, int)
        return np.array(ids, np.int32)


def _partition(specials: Sequence[_Special], pieces: list[Piece]) -> list[Piece]:
    """The pieces with the special tokens that stand in the texts as pieces of their own."""
    for special in specials:
        if any(isinstance(piece, str) and special.text in piece for piece in pieces):
            pieces = [part for piece in pieces for part in _cut_out(special, piece)]
    return pieces


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbouring texts are one text, and empty ones none."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece != "":
            joined.append(piece)
    return joined


def _cut_out(special: _Special, piece: Piece) -> Iterator[Piece]:
    if isinstance(piece, int):
        yield piece
        return
    parts = piece.split(special.text)
    for index, part in enumerate(parts):
        if index > 0:
            yield special.token
            part = part.lstrip(_SPACE_BYTES) if special.rstrip else part
        if index < len(parts) - 1 and special.lstrip:
            part = part.rstrip(_SPACE_BYTES)
        if part:
            yield part


def tokenizer_of(vocabulary: Vocabulary, name: str = "") -> TextTokenizer:
    """The tokenizer of a vocabulary, which a folder or a GGUF file gave.

    name: the file's general.name, by which llama.cpp decides on white space around special tokens (phi-3).
    Unsupported: a vocabulary that cannot be done here (see the top of this module).
    """
    spm, gemma4 = vocabulary.model == "llama", vocabulary.model == "gemma4"
    row = _row(vocabulary.pre) if vocabulary.model == "gpt2" else None
    bos = vocabulary.special.get("bos", _DEFAULT_BOS.get(vocabulary.model))
    eos = vocabulary.special.get("eos")
    begins = vocabulary.add.get("bos", row.adds_bos if row else True) or gemma4  # llama.cpp overrides what files say
    encode = _byte_level(vocabulary, row) if row else (_lines if gemma4 else _sentencepiece)(vocabulary)
    specials = _special(vocabulary, name)
    chat = recognised(vocabulary.chat_template)
    return TextTokenizer(
        bos=bos if begins else None,
        eos=eos if vocabulary.add.get("eos", False) else None,
        cut=tuple(special for special, plain in specials if plain),
        special=tuple(special for special, _ in specials),
        format=chat,
        chat_notes=(_chat_note(chat, vocabulary.chat_template),),
        roles={BOS: vocabulary.special.get("bos", ""), EOS: "" if eos is None else eos},
        spaced=spm and vocabulary.add_space_prefix is not False,
        encode_plain=encode,
    )


def _chat_note(chat: ChatFormat, template: str | None) -> str:
    if chat is not PLAIN:
        return f"chats are laid out in the format {chat.name}"
    why = "has no chat template" if template is None else "has a chat template that is not one of the known formats"
    return f"the model {why}, so chats are laid out as plain text"


def _special(vocabulary: Vocabulary, name: str) -> list[tuple[_Special, bool]]:
    """The tokens that llama.cpp looks for in texts, longest first, and whether it does so in ordinary text too."""
    control = set(EOG_TEXTS)
    for role, texts in _BY_ROLE.items():
        if role not in vocabulary.special:
            control |= set(texts.split())
    present = set(vocabulary.tokens)
    harmony = set(_HARMONY)
    if {"<|return|>", "<|call|>"} <= present or ("<|flush|>" in present and {"<|call|>", "<|calls|>"} & present):
        harmony.add("<|end|>")  # not an end of generation for such models
    rstrip = (phi3_rstrip(vocabulary) or frozenset()) if PHI3.search(name) else frozenset()
    mask = MASKS.get(vocabulary.pre)
    found = [
        (
            _Special(token, text, text == mask, token in rstrip),
            text in harmony or (kind == TokenType.USER_DEFINED and text not in control),
        )
        for token, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True))
        if text and (kind in SPECIAL or text in control or text in harmony)
    ]
    return sorted(found, key=lambda each: len(each[0].text.encode()), reverse=True)


def _row(pre: str) -> pretokenizers.Pretokenizer:
    row = pretokenizers.BY_NAME.get(pre)
    if row is None or not stages_for(row):
        raise Unsupported(
            f"texts cannot be split as the pre-tokenizer {shown(pre)} does it",
            fix="Make the importance matrix with llama-imatrix, and measure with llama-perplexity.",
        )
    return row


def stages_for(row: pretokenizers.Pretokenizer) -> pretokenizers.Stages:
    """The stages (see `pretokenizers`) that split as llama.cpp does; () if there are none."""
    if row.name in _OWN:
        return (*(f"Split {regex}" for regex in _OWN[row.name]), "ByteLevel")
    return row.stages[0] if row.stages else ()


def _byte_level(vocabulary: Vocabulary, row: pretokenizers.Pretokenizer) -> Callable[[str], list[int]]:
    """Splits, bytes as characters, merges by rank; a byte without a token gives nothing."""
    stages = pretokenizers.pre_tokenizer_of(stages_for(row))
    return _merging(vocabulary, stages, {"ignore_merges": row.ignore_merges})


def _lines(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """Merges by rank over whole lines, with ▁ for spaces, then bytes; line breaks that are a token are one."""
    encode = _merging(vocabulary, None, {"byte_fallback": True})
    breaks = {text: token for token, text in enumerate(vocabulary.tokens) if text and not text.strip("\n")}

    def ids(text: str) -> list[int]:
        lines = _LINES.findall(text.replace(" ", SPACE))
        return [token for line in lines for token in ([breaks[line]] if line in breaks else encode(line))]

    return ids


def _merging(vocabulary: Vocabulary, stages: object, options: Mapping[str, bool]) -> Callable[[str], list[int]]:
    """BPE by merges in the tokenizers library. stages: its pre-tokenizer. options: of its model."""
    from tokenizers import Tokenizer

    vocab = {text: token for token, text in enumerate(vocabulary.tokens)}
    for merge in vocabulary.merges:
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise Unsupported(f"the vocabulary merges {shown(merge)}, of which a part or the whole is not a token")
    model = {"type": "BPE", "vocab": vocab, "merges": list(vocabulary.merges), **options}
    whole = {"version": "1.0", "added_tokens": [], "pre_tokenizer": stages, "model": model}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _sentencepiece(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """Merges by score, then bytes. llama.cpp merges into tokens of any type, so all but bytes are ordinary here."""
    from sentencepiece import SentencePieceProcessor

    if vocabulary.scores is None:
        raise Failure("a SentencePiece vocabulary needs scores")
    unknown = len(vocabulary.tokens)  # one more, because the library requires it
    kinds = (TokenType.BYTE if kind == TokenType.BYTE else TokenType.NORMAL for kind in vocabulary.types.tolist())
    pieces = list(zip(vocabulary.tokens, vocabulary.scores.tolist(), kinds, strict=True))
    name = "<unknown>" + SPACE
    while name in vocabulary.tokens:
        name += SPACE
    proto = model_proto([*pieces, (name, 0.0, TokenType.UNKNOWN)], {"unk": unknown}, add_dummy_prefix=False)
    try:
        processor = SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise Unsupported(f"the sentencepiece library does not accept this vocabulary: {error}") from error

    def encode(text: str) -> list[int]:
        ids = list(processor.encode(text))
        if unknown in ids:
            pieces = processor.encode(text, out_type=str)
            missing = re.sub(SPACE, " ", pieces[ids.index(unknown)])
            raise Unsupported(f"the vocabulary has no tokens for {shown(missing)}, and none for its bytes")
        return ids

    return encode
