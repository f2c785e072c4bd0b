"""Folders without a tokenizer.json whose vocabulary a class of transformers turns into one.

    vocab.txt                       BertTokenizer: one piece a line
    sentencepiece.bpe.model         XLMRobertaTokenizer: SentencePiece's pieces behind <s> <pad> </s> <unk>
    vocab.json, merges.txt          RobertaTokenizer: byte-level BPE
    spiece.model                    T5Tokenizer: SentencePiece's pieces, then <extra_id_99> to <extra_id_0>

and those that only code of the checkpoint reads, none of which is executed: rank lists (see `ranks`), and

    tokenizer.model                 ChatGLMTokenizer of ChatGLM 2 and 3: special tokens behind SentencePiece's pieces

What these classes assume where no file says otherwise (transformers 5.24, tokenization_bert.py, _xlm_roberta.py,
_roberta.py, _t5.py) is written into the same form, so that everything else reads tokenizer.json alone.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace

from gguf.constants import TokenType

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.untrusted import Json, child
from ggufsmith.tokenizer import proto, ranks
from ggufsmith.tokenizer.files import TokenizerFiles, optional_bytes, optional_object, optional_text
from ggufsmith.tokenizer.source import MAX_TOKENS, token_text
from ggufsmith.tokenizer.spm import MAX_MODEL, is_tiktoken, parse_pieces

BERT_NAMES = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTA_NAMES = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}
# Words are told apart by spaces, which stand before them.
SPACES = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "WhitespaceSplit"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    ],
}
UNIGRAM = "sentencepiece.bpe.model"
T5, T5_TYPES = "spiece.model", ("t5", "mt5", "umt5")
T5_NAMES = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
ROBERTA = ("RobertaTokenizer", "RobertaTokenizerFast")
# tokenization_chatglm.py of THUDM/chatglm3-6b; ChatGLM 2 has the first five.
CHATGLM = (
    *("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
)


def completed(files: TokenizerFiles) -> TokenizerFiles:
    """The same files, with a tokenizer.json and names of special tokens where a class has them. Malformed: damaged."""
    if files.tokenizer is None:
        if (files.home("vocab.txt") / "vocab.txt").is_file():
            return _with(files, _wordpiece(files), BERT_NAMES)
        if (files.home(UNIGRAM) / UNIGRAM).is_file():
            return _with(files, _unigram(files), ROBERTA_NAMES)
        if (files.home(T5) / T5).is_file() and files.config.get("model_type") in T5_TYPES:
            return _t5(files)
        if files.tokenizer_config.get("tokenizer_class") in ROBERTA and (whole := _byte_level(files)):
            return _with(files, whole, ROBERTA_NAMES)
        return ranks.from_ranks(files) or _chatglm(files)
    model = files.tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordPiece" else None
    if isinstance(vocab, dict) and (files.tokenizer_config or files.special_tokens_map):
        return replace(files, tokenizer_config=_named(files, {k: v for k, v in BERT_NAMES.items() if v in vocab}))
    return files


def _t5(files: TokenizerFiles) -> TokenizerFiles:
    """Those files, with the tokenizer.json and the names of tokens that T5's class makes of SentencePiece's pieces."""
    where = files.path(T5)
    raw = optional_bytes(files.home(T5), T5, MAX_MODEL) or b""
    pieces = parse_pieces(raw, where)
    if not pieces.unigram:
        raise Unsupported("the pieces have no probabilities, so this is not the Unigram model that T5 has", where=where)
    config = _named(files, T5_NAMES)
    stated = child(config, "extra_ids", int, where=files.path("tokenizer_config.json"))
    count = 100 if stated is None else stated
    if not 0 <= count <= MAX_TOKENS:
        raise Malformed(f"extra_ids is {count}", where=files.path("tokenizer_config.json"))
    extra = [f"<extra_id_{number}>" for number in reversed(range(count))]
    vocab = [[text, score] for text, score in zip(pieces.tokens, pieces.scores, strict=True)]
    roles = {token_text(config.get(f"{role}_token"), where=where, key=f"{role}_token") for role in T5_NAMES}
    special = [token for token, text in enumerate(pieces.tokens) if text in roles]
    added = [(token, pieces.tokens[token]) for token in special] + list(enumerate(extra, len(vocab)))
    eos = "</s>"  # whatever is called so
    one, two = ([{"Sequence": {"id": k, "type_id": 0}}, {"SpecialToken": {"id": eos, "type_id": 0}}] for k in "AB")
    ids = [pieces.tokens.index(eos)] if eos in pieces.tokens else []
    tokenizer: Json = {
        "added_tokens": [{"id": token, "content": text, "special": True} for token, text in added],
        "normalizer": _precompiled(raw),
        "pre_tokenizer": SPACES,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": one,
            "pair": [*one, *two],
            "special_tokens": {eos: {"id": eos, "ids": ids, "tokens": [eos]}},
        },
        "model": {
            "type": "Unigram",
            "unk_id": next((k for k, kind in enumerate(pieces.types) if kind == TokenType.UNKNOWN), None),
            "vocab": vocab + [[text, 0.0] for text in extra],
        },
    }
    return replace(files, tokenizer=tokenizer, tokenizer_config=config, named=T5)


def _chatglm(files: TokenizerFiles) -> TokenizerFiles:
    """Those files, with ChatGLM's special tokens if they are ChatGLM's."""
    name = files.sentencepiece
    raw = optional_bytes(files.home(name), name, MAX_MODEL)
    if files.tokenizer_config.get("tokenizer_class") != "ChatGLMTokenizer" or raw is None or is_tiktoken(raw):
        return files
    first = len(parse_pieces(raw, files.path(name)).tokens)
    added = {text: first + number for number, text in enumerate(CHATGLM)}
    config = {"additional_special_tokens": list(CHATGLM), **files.tokenizer_config}
    return replace(files, added_tokens={**added, **files.added_tokens}, tokenizer_config=config)


def _with(files: TokenizerFiles, tokenizer: Json, names: Mapping[str, str]) -> TokenizerFiles:
    """Those files, the named tokens special in this tokenizer.json, and put around texts."""
    config = _named(files, names)
    where = files.path("tokenizer_config.json")
    texts = {role: token_text(config.get(f"{role}_token"), where=where, key=f"{role}_token") for role in names}
    vocab = tokenizer["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {text: k for k, (text, _) in enumerate(vocab)}
    special = [text for text in dict.fromkeys(texts.values()) if text in ids]
    tokenizer["added_tokens"] = [
        {"id": ids[text], "content": text, "special": True, "lstrip": texts["mask"] == text and "bos" in names}
        for text in special
    ]
    cls, sep = texts["cls"], texts["sep"]
    if cls in ids and sep in ids:
        kind = "RobertaProcessing" if "bos" in names else "BertProcessing"
        tokenizer["post_processor"] = {"type": kind, "cls": [cls, ids[cls]], "sep": [sep, ids[sep]]}
    return replace(files, tokenizer=tokenizer, tokenizer_config=config)


def _named(files: TokenizerFiles, names: Mapping[str, str]) -> Json:
    """tokenizer_config.json with a name for every role."""
    stated = {**files.special_tokens_map, **files.tokenizer_config}
    return {**{f"{role}_token": text for role, text in names.items()}, **stated}


def _wordpiece(files: TokenizerFiles) -> Json:
    where, config = files.path("vocab.txt"), files.tokenizer_config
    lines = (optional_text(files.home("vocab.txt"), "vocab.txt") or "").replace("\r\n", "\n").split("\n")
    pieces = [line.rstrip("\n") for line in lines[: -1 if lines and not lines[-1] else None]]
    if len(set(pieces)) < len(pieces):
        raise Malformed("a piece is there twice", where=where)

    def flag(name: str) -> bool | None:
        value: bool | None = child(config, name, bool, where=files.path("tokenizer_config.json"))
        return value

    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": flag("tokenize_chinese_chars") is not False,
        "strip_accents": flag("strip_accents"),
        "lowercase": flag("do_lower_case") is not False,
    }
    model = {"type": "WordPiece", "vocab": {text: k for k, text in enumerate(pieces)}}
    return {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": model}


def _unigram(files: TokenizerFiles) -> Json:
    """The first three of SentencePiece's pieces are <unk> <s> </s>; the class has four of its own, and a last one."""
    where = files.path(UNIGRAM)
    raw = optional_bytes(files.home(UNIGRAM), UNIGRAM, MAX_MODEL) or b""
    pieces = parse_pieces(raw, where)
    own = [[text, 0.0] for text in ("<s>", "<pad>", "</s>", "<unk>")]
    rest = [[text, score] for text, score in zip(pieces.tokens[3:], pieces.scores[3:], strict=True)]
    return {
        "normalizer": _precompiled(raw),
        "pre_tokenizer": SPACES,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [*own, *rest, ["<mask>", 0.0]]},
    }


def _precompiled(raw: bytes) -> Json | None:
    """SentencePiece's table of replacements, as a normalizer."""
    charsmap = proto.charsmap(raw)
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()} if charsmap else None


def _byte_level(files: TokenizerFiles) -> Json | None:
    vocab = optional_object(files.home("vocab.json"), "vocab.json")
    lines = optional_text(files.home("merges.txt"), "merges.txt")
    if vocab is None or lines is None:
        return None
    merges = [line for line in lines.replace("\r\n", "\n").split("\n") if line and not line.startswith("#version")]
    return {
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
