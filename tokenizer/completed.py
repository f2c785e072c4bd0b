"""Folders without a tokenizer.json whose vocabulary a class of transformers turns into one.

    vocab.txt                       BertTokenizer: one piece a line
    sentencepiece.bpe.model         XLMRobertaTokenizer: SentencePiece's pieces behind <s> <pad> </s> <unk>
    vocab.json, merges.txt          RobertaTokenizer: byte-level BPE

and those that only code of the checkpoint reads, none of which is executed: rank lists (see `ranks`), and

    tokenizer.model                 ChatGLMTokenizer of ChatGLM 2 and 3: special tokens behind SentencePiece's pieces

What these classes assume where no file says otherwise (transformers 5.24, tokenization_bert.py, _xlm_roberta.py,
_roberta.py) is written into the same form, so that everything else reads tokenizer.json alone.
"""

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import Json, child
from ggufsmith.tokenizer import proto, ranks
from ggufsmith.tokenizer.files import TokenizerFiles, optional_bytes, optional_object, optional_text
from ggufsmith.tokenizer.source import token_text
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
UNIGRAM = "sentencepiece.bpe.model"
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
        if files.tokenizer_config.get("tokenizer_class") in ROBERTA and (whole := _byte_level(files)):
            return _with(files, whole, ROBERTA_NAMES)
        return ranks.from_ranks(files) or _chatglm(files)
    model = files.tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type") == "WordPiece" else None
    if isinstance(vocab, dict) and (files.tokenizer_config or files.special_tokens_map):
        return replace(files, tokenizer_config=_named(files, {k: v for k, v in BERT_NAMES.items() if v in vocab}))
    return files


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
    charsmap = proto.charsmap(raw)
    normalizer: Any = None
    if charsmap:
        normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
    split = [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}]
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": [*own, *rest, ["<mask>", 0.0]]},
    }


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
