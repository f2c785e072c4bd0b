r"""Which pre-tokenizer of llama.cpp a tokenizer.json describes, found from its structure.

A `pre_tokenizer` is flattened into stages, one string each ("Split <regex>", "Digits each", "ByteLevel+regex", ...),
and looked up in TABLE. Added tokens, merges and vocabulary do not matter, so a fine-tune matches like its base model.

Many names of llama.cpp mean the same split (src/llama-vocab.cpp, the switch in `llm_tokenizer_bpe`); they are `aliases`
of one row. Where the converter of llama.cpp writes the alias, `marks` says by which tokens its family is recognised.
Rows without stages are known to `--pre`, but their tokenizer.json is unpublished, absent, or does something that
llama.cpp only approximates.

The regular expressions are the publishers' (facts of their tokenizer.json), not llama.cpp's adaptations of them.
"""

import difflib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.text import did_you_mean
from ggufsmith.container.untrusted import Json, child, expect, shown

Stages = tuple[str, ...]


@dataclass(frozen=True)
class Pretokenizer:
    """One way to split text, as llama.cpp implements it.

    stages:        the flattened forms in which tokenizer.json files express it.
    ignore_merges: a word that is a token is taken whole.
    adds_bos:      llama.cpp adds BOS unless the file says otherwise.
    aliases:       names with the same split, or nearly (they may treat spaces differently when turning ids into text).
    marks:         alias -> tokens that must all be in the vocabulary for the alias to be written.
    """

    name: str
    stages: tuple[Stages, ...] = ()
    ignore_merges: bool = False
    adds_bos: bool = False
    aliases: tuple[str, ...] = ()
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that llama.cpp has for this split."""
        return (self.name, *self.aliases, *self.marks)


ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CJK = "[一-龥ࠀ-一가-퟿]+"
KANA = "[一-龥぀-ゟ゠-ヿ]+"

# OpenAI's cl100k with one to three digits, and the same with one.
_CL100K = rf"{ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
LLAMA3, QWEN2, MINICPM5 = (_CL100K % digits for digits in (r"\p{N}{1,3}", r"\p{N}", r"\p{N}+"))
UFAKZEKA = QWEN2.removeprefix(f"{ENGLISH}|")
QWEN35 = rf"{ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}"
BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
SEED_CODER = rf"{ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}"
EXAONE_MOE = (
    rf"{ENGLISH}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2 = (
    LLAMA3.removesuffix(r"|\s+(?!\S)|\s+")
    + "".join(rf"|\s{{{n}}}(?!\S)" for n in ("512", "256", "128", "64", "32", "16", "8", "4", "1,2"))
    + r"|\s{1}"
)

# OpenAI's o200k, which splits at changes of case, with and without English endings.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    rf"|%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
)
GPT4O = _O200K % (f"{ENGLISH}?", f"{ENGLISH}?", r"\p{N}{1,3}")
TEKKEN = _O200K % ("", "", r"\p{N}")
YOUTU = _O200K % (f"{ENGLISH}?", f"{ENGLISH}?", r"\p{N}")
# Chinese apart from other scripts.
_UPPER_NOT_HAN, _LOWER_NOT_HAN = (rf"{letters[:-1]}&&[^\p{{Han}}]]" for letters in (_UPPER, _LOWER))
KIMI = (
    rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_NOT_HAN}*{_LOWER_NOT_HAN}+{ENGLISH}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER_NOT_HAN}+{_LOWER_NOT_HAN}*{ENGLISH}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"
)

_ASCII_WORD = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
DEEPSEEK3 = rf"{_ASCII_WORD}|{_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"
SPARK = rf"{_ASCII_WORD}|{_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
# Letters, by code point: some of them (ohm, kelvin, Greek with oxia) change under Unicode normalization.
DEEPSEEK_LETTERS = (
    r"\s?["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
DEEPSEEK_MARKS = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
YOUTU_SCRIPTS = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"


def _splits(*regexes: str, then: Stages = ("ByteLevel",)) -> Stages:
    """Splits in order, then, unless told otherwise, bytes to characters without a further split."""
    return (*(f"Split {regex}" for regex in regexes), *then)


_GPT2: Stages = ("ByteLevel+regex",)
_DIGITS: Stages = ("Digits each", "ByteLevel+regex")

TABLE = (
    Pretokenizer(
        "llama-bpe",
        (_splits(LLAMA3),),
        ignore_merges=True,
        adds_bos=True,
        aliases=("llama3", "llama-v3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    ),
    Pretokenizer("falcon3", (("Punctuation Contiguous", "ByteLevel+regex", "Digits each"),), True, True),
    Pretokenizer("glm4", (_splits(LLAMA3),), ignore_merges=True, aliases=("glm5",), marks={"glm4": ("[gMASK]",)}),
    Pretokenizer("dbrx", (_splits(LLAMA3),), marks={"smaug-bpe": ("<|begin_of_text|>",)}),
    Pretokenizer("chatglm-bpe", (_splits(LLAMA3),), marks={"chatglm-bpe": ("[gMASK]",)}),
    Pretokenizer("jais-2", (_splits(JAIS2),)),
    Pretokenizer(
        "qwen2",
        (_splits(QWEN2),),
        aliases=("kormo", "f2llmv2", "megrez", "stablelm2", "solar-open", "grok-2"),
        marks={"deepseek-r1-qwen": ("<｜begin▁of▁sentence｜>",), "hunyuan": ("<|startoftext|>", "<|extra_204|>")},
    ),
    Pretokenizer("qwen35", (_splits(QWEN35),)),
    Pretokenizer("ufakzeka", (_splits(UFAKZEKA),)),
    Pretokenizer("laguna", (_splits(r"[^\n]+|[\n]+", QWEN2),)),
    Pretokenizer("minicpm5", (_splits(r"\p{N}{1,3}", MINICPM5),), ignore_merges=True),
    Pretokenizer("bailingmoe", (_splits(BAILING),), aliases=("bailingmoe2", "llada-moe")),
    Pretokenizer("seed-coder", (_splits(SEED_CODER),)),
    Pretokenizer("exaone-moe", (_splits(EXAONE_MOE),)),
    Pretokenizer(
        "gpt-4o",
        (_splits(GPT4O),),
        aliases=("kanana2", "talkie"),
        marks={"llama4": ("<|header_start|>", "<|header_end|>"), "minimax-m2": ("]~b]", "[e~[")},
    ),
    Pretokenizer("tekken", (_splits(TEKKEN),), ignore_merges=True, adds_bos=True),
    Pretokenizer("youtu", (_splits(YOUTU_SCRIPTS, YOUTU),), ignore_merges=True),
    Pretokenizer("tiny_aya", (_splits(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O),), aliases=("cohere2moe",)),
    Pretokenizer(
        "deepseek-llm",
        (_splits(r"[\r\n]", DEEPSEEK_LETTERS, DEEPSEEK_MARKS, r"\s+$", CJK, then=("Digits each", "ByteLevel")),),
    ),
    Pretokenizer(
        "deepseek-coder", (_splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, then=("Digits each", "ByteLevel")),)
    ),
    Pretokenizer(
        "deepseek-v3",
        (_splits(r"\p{N}{1,3}", KANA, DEEPSEEK3),),
        aliases=("hy_v4", "joyai-llm"),
        marks={"hunyuan-dense": ("<｜hy_begin▁of▁sentence｜>",)},
    ),
    Pretokenizer("spark2_5", (_splits(r"\p{N}{1,3}", KANA, SPARK, then=("Digits each", "ByteLevel")),)),
    Pretokenizer("falcon", (("Punctuation Contiguous", "ByteLevel+regex", "Digits", "Split [0-9][0-9][0-9]"),)),
    Pretokenizer(
        "smollm",
        (_DIGITS,),
        aliases=("codeshell", "minerva-7b", "mellum2"),
        marks={
            "smollm": ("<repo_name>", "<reponame>"),
            "starcoder": ("<repo_name>", "<fim_prefix>"),
            "refact": ("<reponame>", "<fim_prefix>"),
            "command-r": ("<|START_OF_TURN_TOKEN|>",),
            "exaone": ("[|endofturn|]",),
        },
    ),
    Pretokenizer(
        "gpt-2",
        (_GPT2,),
        aliases=(
            *("mpt", "jais", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"),
            *("jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
        ),
        marks={
            "modern-bert": ("[CLS]", "[SEP]", "[MASK]"),
            "roberta-bpe": ("<s>", "<pad>", "</s>", "<mask>"),
            "olmo": ("<|padding|>",),
            "phi-2": (" " * 31,),
            "exaone4": ("[|endofturn|]",),
        },
    ),
    Pretokenizer("bloom", (_splits(BLOOM),), aliases=("poro-chat", "gpt3-finnish")),
    Pretokenizer("viking", (_splits(BLOOM, then=("Digits each", "ByteLevel")),)),
    Pretokenizer("superbpe", (("Digits", r"Split (?=(\d{3})+(?!\d))", "ByteLevel"),)),
    Pretokenizer("default"),
    Pretokenizer("jina-v1-en", aliases=("jina-v2-code",)),
    Pretokenizer("granite-embed-multi-97m", ignore_merges=True),
    Pretokenizer("chameleon", adds_bos=True),
    Pretokenizer("gemma4", aliases=("granite-embed-multi-311m",)),
    Pretokenizer("sarvam-moe"),
    Pretokenizer("kimi-k2", (_splits(KIMI),)),
    Pretokenizer("afmoe"),
    Pretokenizer("whitespace"),
)

BY_NAME: Mapping[str, Pretokenizer] = {name: row for row in TABLE for name in row.names}

# Pre-tokenizers of the transformers classes whose folders may hold vocab.json and merges.txt instead of tokenizer.json.
BY_CLASS: Mapping[str, Stages] = {
    "Qwen2Tokenizer": _splits(QWEN2),
    "Qwen2TokenizerFast": _splits(QWEN2),
    "GPT2Tokenizer": _GPT2,
    "GPT2TokenizerFast": _GPT2,
}


def named(name: str) -> Pretokenizer:
    """The row with that name or alias. Usage if llama.cpp knows none."""
    row = BY_NAME.get(name)
    if row is None:
        hint = did_you_mean(name, BY_NAME, cutoff=0.4)
        known = f"Known: {', '.join(sorted(BY_NAME))}."
        raise Usage(f"unknown pre-tokenizer {shown(name)}", where="--pre", fix=f"{hint} {known}".lstrip())
    return row


def stages_of(tokenizer: Json, where: Path) -> Stages:
    """The `pre_tokenizer` of a tokenizer.json, flattened; () if it has none."""
    top = child(tokenizer, "pre_tokenizer", dict, where=where)
    return () if top is None else _flatten(top, where, 0)


def _flatten(node: Json, where: Path, depth: int) -> Stages:
    kind = expect(node.get("type"), str, where=where, key="pre_tokenizer.type")
    if kind == "Sequence" and depth < 8:
        inner = expect(node.get("pretokenizers"), list, where=where, key="pre_tokenizer.pretokenizers")
        nodes = [expect(n, dict, where=where, key="pre_tokenizer.pretokenizers") for n in inner]
        return tuple(stage for n in nodes for stage in _flatten(n, where, depth + 1))
    return (_STAGE.get(kind, _plain)(node),)


def pre_tokenizer_of(stages: Stages) -> Json:
    """The `pre_tokenizer` section of a tokenizer.json that flattens to these stages of TABLE."""
    return {"type": "Sequence", "pretokenizers": [_node(stage) for stage in stages]}


def _node(stage: str) -> Json:
    kind, _, rest = stage.partition(" ")
    match kind:
        case "Split":
            return {"type": kind, "pattern": {"Regex": rest}, "behavior": "Isolated", "invert": False}
        case "Digits":
            return {"type": kind, "individual_digits": rest == "each"}
        case "Punctuation":
            return {"type": kind, "behavior": rest}
    regex = stage.endswith("+regex")
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


def _split(node: Json) -> str:
    """`Removed` with `invert` keeps only the matches; as these patterns match everything, that is `Isolated`."""
    behavior, inverted = node.get("behavior"), node.get("invert") is True
    pattern = node.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(regex, str) or (behavior, inverted) not in (("Isolated", False), ("Removed", True)):
        return _plain(node)
    for raw, escaped in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        regex = regex.replace(raw, escaped)
    return f"Split {regex}"


def _byte_level(node: Json) -> str:
    regex = "" if node.get("use_regex") is False else "+regex"
    return f"ByteLevel{regex}{'+prefix' if node.get('add_prefix_space') is True else ''}"


def _plain(node: Json) -> str:
    options = " ".join(f"{key}={shown(value)}" for key, value in list(node.items())[:9] if key != "type")
    return f"{node['type']} {options}".strip()


_STAGE: Mapping[str, Any] = {
    "Split": _split,
    "ByteLevel": _byte_level,
    "Digits": lambda node: "Digits each" if node.get("individual_digits") is True else "Digits",
    "Punctuation": lambda node: f"Punctuation {node.get('behavior', 'Isolated')}",
}


def match(stages: Stages, ignore_merges: bool, vocabulary: Container[str], where: Path) -> tuple[str, Pretokenizer]:
    """The name to write and its row.

    Rows with the same `ignore_merges` are preferred; of several, one whose marks are in the vocabulary wins, else the
    first. Unsupported if no row has these stages.
    """
    alike = [row for row in TABLE if stages in row.stages]
    rows = [row for row in alike if row.ignore_merges == ignore_merges] or alike
    for row in rows:
        for name, tokens in row.marks.items():
            if all(token in vocabulary for token in tokens):
                return name, row
    if rows:
        return rows[0].name, rows[0]
    found = _cut(" → ".join(stages)) or "none"
    near = max(TABLE, key=lambda row: max((_likeness(stages, known) for known in row.stages), default=0.0))
    raise Unsupported(
        f"llama.cpp has no pre-tokenizer that splits text like this one: {found}",
        where=f"{where}: pre_tokenizer",
        fix=f"The nearest is {near.name} ({' → '.join(near.stages[0])}). If it splits your text the same way, convert "
        f"the folder with gguf-convert --pre {near.name} (or --pre NAME for another), and go on with that file.",
    )


def _likeness(found: Stages, known: Stages) -> float:
    return difflib.SequenceMatcher(None, _cut("\n".join(found)), "\n".join(known), autojunk=False).ratio()


def _cut(text: str, limit: int = 2000) -> str:
    """At most `limit` characters; the longest of TABLE has 1000."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
