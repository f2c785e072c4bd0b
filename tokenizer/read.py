"""A Hugging Face model folder -> Vocabulary.

tokenizer.model (SentencePiece) is preferred, as in llama.cpp's converter; then tokenizer.json, for which tekken.json
stands in; then the files that `completed` makes one of; then vocab.json with merges.txt. transformers is not used.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import TokenType

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.untrusted import Json, child, expect, shown
from ggufsmith.container.values import i32s
from ggufsmith.tokenizer import bpe, pretokenizers, spm, tekken
from ggufsmith.tokenizer.added import ADDED, DECODER, JSON, AddedToken, listing, read_added
from ggufsmith.tokenizer.around import read_frame
from ggufsmith.tokenizer.completed import completed
from ggufsmith.tokenizer.files import TokenizerFiles, optional_bytes, optional_object, optional_text
from ggufsmith.tokenizer.parts import Parts
from ggufsmith.tokenizer.source import MAX_TOKENS
from ggufsmith.tokenizer.special import find_special
from ggufsmith.tokenizer.templates import read_templates
from ggufsmith.tokenizer.unigram import read_unigram
from ggufsmith.tokenizer.vocabulary import SCORED, Vocabulary
from ggufsmith.tokenizer.wordpiece import read_wordpiece

# Classes for which llama.cpp's converter copies `add_prefix_space` of tokenizer_config.json (conversion/llama.py).
LLAMA_CLASSES = frozenset(
    "LLaMAForCausalLM LlamaForCausalLM MistralForCausalLM MixtralForCausalLM LlamaModel IQuestCoderForCausalLM "
    "SmolLM3ForCausalLM GraniteForCausalLM GraniteMoeForCausalLM ArceeForCausalLM ApertusForCausalLM "
    "Ministral3ForCausalLM Mistral3ForConditionalGeneration GraniteSpeechForConditionalGeneration "
    "GraniteSpeechPlusForConditionalGeneration".split()
)
LLAMA_TOKENIZERS = ("LlamaTokenizer", "LlamaTokenizerFast")  # those of transformers that follow `add_prefix_space`
# Classes for which it writes an `eot` that llama.cpp would find by its text as well (conversion/gemma.py).
EOT_CLASSES = {"GemmaForCausalLM": "<end_of_turn>"}
# Classes with llama.cpp's tokenizer "gemma4", byte-fallback BPE by merges, and the added tokens that it always shows,
# for what parses a chat to read them (conversion/gemma.py).
GEMMA4_CLASSES = frozenset(
    "Gemma4ForCausalLM Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration "
    "Gemma4AssistantForCausalLM".split()
)
GEMMA4_SHOWN = frozenset(
    ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
)
# Classes whose chats end every turn in one token, whatever their files say, and that write ChatML.
TURN_CLASSES: Mapping[str, str] = dict.fromkeys(
    ("Qwen3ASRForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration"), "<|im_end|>"
)
CHATML_CLASSES = frozenset(("Qwen3ASRForConditionalGeneration",))
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Classes of which some tokens are never to be written.
SUPPRESSING_CLASSES = frozenset(("Gemma4UnifiedForConditionalGeneration",))
SUPPRESSED = "tokenizer.ggml.suppress_tokens"  # which the gguf package does not have yet


def read_vocabulary(
    folder: Path,
    *,
    config: Mapping[str, Any],
    size: int | None,
    pre: str | None = None,
    architecture: str,
    model: Path | None = None,
    base: Path | None = None,
) -> Vocabulary:
    """The vocabulary of a model folder.

    config:       parsed config.json.
    size:         rows of the embedding; None takes `vocab_size` of the config, or as many as there are tokens.
    pre:          a pre-tokenizer name of llama.cpp that overrides the one found.
    architecture: the Hugging Face class, for the few keys that llama.cpp's converter writes for some classes only.
    model:        the folder of generation_config.json, if it is another.
    base:         a folder whose files stand in for those that `folder` lacks: of an adapter that names added tokens.

    Malformed: a damaged or contradictory file. Unsupported: a kind of vocabulary, or a pre-tokenizer, without a
    counterpart. Usage: an unknown `pre`.
    """
    folder = Path(folder)
    if pre is not None:
        pretokenizers.named(pre)
    notes: list[str] = []
    rows = _rows(folder, config, size, notes)
    files = completed(TokenizerFiles.read(folder, config, model=model, base=base))
    parts = _parts(files, rows, pre, notes)
    if architecture in GEMMA4_CLASSES:
        parts = _gemma4(parts, files)
    unused = parts.table.types == TokenType.UNUSED
    index = {text: i for i, text in enumerate(parts.tokens) if not unused[i]}
    special = find_special(files, parts.frame, parts.added, parts.tokens, index)
    if parts.adds_bos and parts.frame is not None and "bos" not in special.add:
        special.add["bos"] = False
        special.notes.append(
            "tokenizer.json does not add BOS, so the file says that none is added; llama.cpp would "
            "add it to such a vocabulary"
        )
    unknown = np.flatnonzero(parts.table.types == TokenType.UNKNOWN)
    if parts.model == "t5" and len(unknown):
        special.ids.setdefault("unk", int(unknown[0]))  # llama.cpp would take that of T5, which is 2
    template, named, more = read_templates(files)
    further = [token for token in parts.further if token.id < len(parts.tokens)]
    notes += _flag_notes(further, files)
    if parts.model == "llama" and parts.space_prefix is not False and _once(files.tokenizer):
        notes.append(
            "this tokenizer puts a space only before a text; llama.cpp also puts one after every special token"
        )
    vocabulary = Vocabulary(
        model=parts.model,
        pre=parts.pre,
        tokens=parts.tokens,
        types=parts.table.types,
        scores=parts.table.scores if parts.model in SCORED else None,
        merges=parts.merges,
        special=special.ids,
        eog=special.eog,
        add=special.add,
        add_space_prefix=parts.space_prefix,
        lstrip=tuple(token.id for token in further if token.lstrip),
        rstrip=tuple(token.id for token in further if token.rstrip),
        chat_template=template,
        chat_templates=named,
        more=parts.more,
        notes=(*notes, *parts.table.notes, *special.notes, *more),
    )
    return _for_class(vocabulary, architecture, files, index)


def _gemma4(parts: Parts, files: TokenizerFiles) -> Parts:
    """The same vocabulary for llama.cpp's tokenizer "gemma4", which merges as tokenizer.json says."""
    if files.tokenizer is None:
        raise Unsupported(
            "the merges of Gemma 4 are in its tokenizer.json, which is missing",
            where=files.folder,
            fix="Copy tokenizer.json of the original model into the folder.",
        )
    merges = bpe.read_bpe(files.tokenizer, files.path("tokenizer.json")).merges
    types, scores = parts.table.types.copy(), np.full(len(parts.tokens), -1000, np.float32)
    types[[number for number, text in enumerate(parts.tokens) if text in GEMMA4_SHOWN]] = TokenType.USER_DEFINED
    table = replace(parts.table, types=types, scores=scores)
    return replace(parts, model="gemma4", pre="", table=table, merges=merges)


def _rows(folder: Path, config: Mapping[str, Any], size: int | None, notes: list[str]) -> int | None:
    """How many tokens to write. The embedding decides over the config."""
    where = folder / "config.json"
    text_config = child(config, "text_config", dict, where=where) or {}
    stated: int | None = child(config, "vocab_size", int, where=where)
    if stated is None:
        stated = child(text_config, "vocab_size", int, where=where)
    if stated is not None and not 0 < stated <= MAX_TOKENS:
        raise Malformed(f"vocab_size is {stated}, outside 1..{MAX_TOKENS}", where=where)
    if size is None:
        return stated
    if stated is not None and stated != size:
        notes.append(
            f"config.json says vocab_size {stated}, but the embedding matrix has {size} rows; {size} tokens are written"
        )
    return size


def _parts(files: TokenizerFiles, rows: int | None, pre: str | None, notes: list[str]) -> Parts:
    """Choose the file that holds the vocabulary and read it."""
    raw = optional_bytes(files.home(files.sentencepiece), files.sentencepiece, spm.MAX_MODEL)
    if raw is not None and not spm.is_tiktoken(raw) and files.named != tekken.NAME:
        return _from_sentencepiece(raw, files, rows, pre, notes)
    kind = _model_type(files.tokenizer)
    if files.tokenizer is not None and kind in ENCODERS:
        _refuse_pre(pre)
        return ENCODERS[kind](files, rows, notes)
    if files.tokenizer is not None:
        stages = pretokenizers.stages_of(files.tokenizer, files.path("tokenizer.json"))
        return _from_bpe(files.tokenizer, stages, files, rows, pre, notes)
    return _from_bpe(*_from_pairs(files), files, rows, pre, notes)


# Types of the model in a tokenizer.json that vocabularies of encoders have.
ENCODERS = {"WordPiece": read_wordpiece, "Unigram": read_unigram}


def _model_type(tokenizer: Json | None) -> str:
    model = (tokenizer or {}).get("model")
    return str(model.get("type")) if isinstance(model, dict) else ""


def _from_bpe(
    tokenizer: Json,
    stages: pretokenizers.Stages,
    files: TokenizerFiles,
    rows: int | None,
    pre: str | None,
    notes: list[str],
) -> Parts:
    where = files.path("tokenizer.json")
    model = bpe.read_bpe(tokenizer, where)
    added = read_added(files, model.vocab, rows, renames=False)
    # Byte fallback is for vocabularies of characters; some files of bytes claim it too, without any <0x00>.
    fallback = model.byte_fallback and not any(stage.startswith("ByteLevel") for stage in stages)
    table = bpe.table_of(model, added, rows, where, scored=fallback)
    tokens = table.finish(where)
    frame = read_frame(tokenizer, where) if tokenizer is files.tokenizer else None
    stated = {**added.ids[ADDED], **added.ids[DECODER], **added.ids[JSON]}
    by_text = {text: model.vocab.get(text, token) for text, token in stated.items()}
    normalizers = {_kind(step) for step in _steps(child(tokenizer, "normalizer", dict, where=where), where)}
    if fallback:
        _refuse_pre(pre)
        notes += (f"llama.cpp does not apply the pre-tokenizer {s}" for s in stages if not _only_spaces(s))
        prefix = _prepends(normalizers, stages)
        return Parts("llama", "default", table, tokens, added.tokens, by_text, frame, (), True, prefix)
    notes += (f"llama.cpp does not apply the normalizer {kind}" for kind in sorted(normalizers - {"NFC"}))
    if pre is not None:
        name, row = pre, pretokenizers.named(pre)
    else:
        name, row = pretokenizers.match(stages, model.ignore_merges, {*model.vocab, *stated}, where)
    if row.ignore_merges != model.ignore_merges:
        notes.append(f"ignore_merges is {model.ignore_merges}, llama.cpp's {name} assumes {row.ignore_merges}")
    return Parts("gpt2", name, table, tokens, added.tokens, by_text, frame, model.merges, row.adds_bos)


def _from_sentencepiece(
    raw: bytes, files: TokenizerFiles, rows: int | None, pre: str | None, notes: list[str]
) -> Parts:
    """tokenizer.model; a tokenizer.json of the same vocabulary beside it tells of added tokens."""
    _refuse_pre(pre)
    where = files.path(files.sentencepiece)
    pieces = spm.parse_pieces(raw, where)
    if pieces.unigram:
        notes.append("tokenizer.model is a unigram model; llama.cpp merges by score, which may split words differently")
    if pieces.normalizes:
        notes.append("tokenizer.model normalizes characters or runs of spaces, but llama.cpp does not")
    words = spm.words_of(files.tokenizer)
    differ = spm.differences(pieces, words)
    alike = 2 * len(differ) <= min(len(words), len(pieces.tokens))
    if not alike:
        notes.append(
            "the vocabulary in tokenizer.json differs from that in tokenizer.model, so tokenizer.json is not used"
        )
    vocabulary = {text: token for token, text in enumerate(pieces.tokens)}
    added = read_added(files, vocabulary, rows, renames=True, json_counts=alike)
    if alike:
        spm.check_words(pieces, differ, added, files.folder)
    more = {token: text for token, text in words.items() if token >= len(pieces.tokens)} if alike else {}
    table = spm.table_of(pieces, more, added, rows)
    frame = read_frame(files.tokenizer, files.path("tokenizer.json")) if alike and files.tokenizer else None
    prefix = None if pieces.dummy_prefix else False
    by_text = {text: vocabulary.get(text, token) for text, token in added.ids[JSON].items()}
    tokens = table.finish(where)
    return Parts("llama", "default", table, tokens, added.tokens, by_text, frame, (), True, prefix)


def _flag_notes(added: Sequence[AddedToken], files: TokenizerFiles) -> Iterator[str]:
    """Flags that llama.cpp does not know, apart from those of `stripping`, which depend on the model's name."""
    if whole := {token.text: token for token in added if token.single_word}:
        yield f"llama.cpp finds {listing(whole)} inside words too, but this tokenizer does not (single_word)"
    where = files.path("tokenizer.json")
    steps = _steps(child(files.tokenizer or {}, "normalizer", dict, where=where), where)
    normalized = [token.text for token in added if token.normalized]
    if changed := [text for text in normalized if any(_changes(step, text) for step in steps)]:
        texts = listing(dict.fromkeys(changed))
        yield (
            f"llama.cpp finds {texts} in the original text, but this tokenizer finds them in normalized text "
            "(normalized)"
        )


def _once(tokenizer: Json | None) -> bool:
    """Whether a tokenizer.json puts its space before the first part of a text only, not behind added tokens."""
    node = (tokenizer or {}).get("pre_tokenizer")
    return isinstance(node, dict) and (node.get("type"), node.get("prepend_scheme")) == ("Metaspace", "first")


def _changes(normalizer: Json, text: str) -> bool:
    """Whether one of the normalizers that vocabularies of this kind have changes a text."""
    kind, pattern = normalizer.get("type"), normalizer.get("pattern")
    if kind == "Replace":
        return isinstance(pattern, dict) and isinstance(pattern.get("String"), str) and pattern["String"] in text
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return unicodedata.normalize(kind, text) != text
    return kind == "Prepend" or (kind == "Lowercase" and text.lower() != text)


def _refuse_pre(pre: str | None) -> None:
    if pre not in (None, "default"):
        raise Usage(
            f"--pre {pre} applies to byte-level BPE, but this vocabulary is another one", fix="Leave out --pre."
        )


def _from_pairs(files: TokenizerFiles) -> tuple[Json, pretokenizers.Stages]:
    """vocab.json and merges.txt in the shape of a tokenizer.json. UTF-8, whatever the platform's default is."""
    vocab = optional_object(files.home("vocab.json"), "vocab.json")
    lines = optional_text(files.home("merges.txt"), "merges.txt")
    if vocab is None or lines is None:
        raise Unsupported(
            "there is no vocabulary: no tokenizer.json, tokenizer.model, spiece.model, sentencepiece.bpe.model, "
            "tekken.json, vocab.txt, vocab.json with merges.txt, or rank list that is known (qwen.tiktoken, "
            "tiktoken.model, hy.tiktoken)",
            where=files.folder,
            fix="Copy the tokenizer files of the base model into the folder. Of the rank lists of tiktoken, those of "
            "Qwen (1), GLM-4 9B, Kimi and Hunyuan are read; transformers can turn others into a tokenizer.json.",
        )
    kind = child(files.tokenizer_config, "tokenizer_class", str, where=files.path("tokenizer_config.json"))
    stages = pretokenizers.BY_CLASS.get(kind or "")
    if stages is None:
        raise Unsupported(
            f"vocab.json and merges.txt do not say how text is split, and the tokenizer_class is {shown(kind)}",
            where=files.folder,
            fix="This class is not supported. Save the tokenizer with transformers, which writes a tokenizer.json.",
        )
    merges = [line for line in lines.replace("\r\n", "\n").split("\n") if line and not line.startswith("#version")]
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges}}, stages


def _steps(normalizer: Json | None, where: Path) -> list[Json]:
    """The steps of a normalizer, a sequence flattened."""
    if normalizer is None:
        return []
    inner = child(normalizer, "normalizers", list, where=where, path="normalizer.")
    if inner is None:
        return [normalizer]
    return [expect(step, dict, where=where, key="normalizer.normalizers") for step in inner]


def _kind(node: Json) -> str:
    kind = node.get("type")
    return kind if isinstance(kind, str) else shown(kind)


def _only_spaces(stage: str) -> bool:
    """Whether a stage only marks or keeps spaces, which llama.cpp does for these vocabularies anyway."""
    return stage.startswith("Metaspace") or stage == _GEMMA


# Gemma's pre-tokenizer: it can find no space, as the normalizer has replaced them all.
_GEMMA = "Split pattern={'String': ' '} behavior='MergedWithPrevious' invert=False"


def _prepends(normalizers: set[str], stages: pretokenizers.Stages) -> bool | None:
    """None (llama.cpp's default, true) if a byte-fallback tokenizer puts a space before a text, else False."""
    metaspace = any(stage.startswith("Metaspace") and "prepend_scheme='never'" not in stage for stage in stages)
    return None if metaspace or "Prepend" in normalizers else False


def _for_class(
    vocabulary: Vocabulary, architecture: str, files: TokenizerFiles, index: Mapping[str, int]
) -> Vocabulary:
    """The keys that llama.cpp's converter writes for some classes only."""
    special, add, prefix = dict(vocabulary.special), dict(vocabulary.add), vocabulary.add_space_prefix
    text = EOT_CLASSES.get(architecture)
    if text is not None and text in index:
        special.setdefault("eot", index[text])
    where = files.path("tokenizer_config.json")
    stated = child(files.tokenizer_config, "add_prefix_space", bool, where=where)
    notes = list(vocabulary.notes)
    if architecture in LLAMA_CLASSES:
        follows = True
        if files.config.get("vocab_size") == 49152:  # small Granite and SmolLM models
            add.setdefault("bos", False)
    else:
        follows = files.tokenizer_config.get("tokenizer_class") in LLAMA_TOKENIZERS
    if stated is not None and vocabulary.model == "llama" and stated != (prefix is not False):
        notes.append(
            f"tokenizer_config.json says add_prefix_space: {str(stated).lower()}, the tokenizer itself does the "
            f"opposite: the flag was {'' if follows else 'not '}followed"
        )
    if stated is not None and follows and (vocabulary.model == "llama" or architecture in LLAMA_CLASSES):
        prefix = stated
    ends, more, template = TURN_CLASSES.get(architecture), dict(vocabulary.more), vocabulary.chat_template
    if ends is not None and ends in index:
        special |= dict.fromkeys(("bos", "eos"), index[ends])
    if architecture in SUPPRESSING_CLASSES and files.generation.get("suppress_tokens") is not None:
        where = files.path("generation_config.json")
        found = child(files.generation, "suppress_tokens", list, where=where) or []
        if not all(isinstance(token, int) and 0 <= token < len(vocabulary.tokens) for token in found):
            raise Malformed("suppress_tokens must be a list of tokens", where=where)
        more[SUPPRESSED] = i32s(found)
    if architecture in CHATML_CLASSES:
        template = CHATML
    return replace(
        vocabulary,
        special=special,
        add=add,
        add_space_prefix=prefix,
        more=more,
        chat_template=template,
        notes=tuple(notes),
    )
