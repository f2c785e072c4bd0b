"""Tokenizer folders whose tokenizer.json puts certain tokens around a text."""

import json
from pathlib import Path
from typing import Any

import vocabularies

Json = dict[str, Any]
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
KINDS = ("qwen2-bpe", "llama-bpe-fallback", "llama-spm")


def template(*pieces: str, nested: bool = False) -> Json:
    """A TemplateProcessing of special tokens around the text, which is A."""
    single = [TEXT if piece == "A" else {"SpecialToken": {"id": piece, "type_id": 0}} for piece in pieces]
    pair = [*single, *({"Sequence": {"id": "B", "type_id": 1}} if piece == TEXT else piece for piece in single)]
    step = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {}}
    return {"type": "Sequence", "processors": [PLAIN, step]} if nested else step


def roberta(bos: str, eos: str) -> Json:
    return {
        "type": "RobertaProcessing",
        "sep": [eos, 0],
        "cls": [bos, 0],
        "trim_offsets": True,
        "add_prefix_space": False,
    }


def _with_ids(processor: Json | None, ids: dict[str, int]) -> Json | None:
    """The ids of the special tokens, which a post-processor repeats."""
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_with_ids(step, ids) for step in processor["processors"]]}
    if kind == "TemplateProcessing":
        known = {text: {"id": text, "ids": [token], "tokens": [text]} for text, token in ids.items()}
        return {**processor, "special_tokens": known}
    return {key: [value[0], ids[value[0]]] if key in ("sep", "cls") else value for key, value in processor.items()}


def folder_with(kind: str, folder: Path, processor: Json | None, **config: Any) -> Path:
    """A folder whose tokenizer.json has this post-processor, BOS <b> and EOS <e>."""
    tokens = {"<b>": {"special": True}, "<e>": {"special": True}, "<c>": {"special": True}}
    count = vocabularies.write_naming(kind, folder, ["tokenizer.json"], tokens)

    def put(name: str, value: Json) -> None:
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    put(
        "tokenizer.json",
        {**whole, "post_processor": _with_ids(processor, {t: count + i for i, t in enumerate(tokens)})},
    )
    stated = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    put("tokenizer_config.json", {**stated, "bos_token": "<b>", "eos_token": "<e>", **config})
    return folder


# Post-processor, whether it adds BOS, and whether it adds EOS.
FRAMES: list[tuple[Json | None, bool, bool]] = [
    (None, False, False),
    (PLAIN, False, False),
    (template("A"), False, False),
    (template("<b>", "A"), True, False),
    (template("<b>", "A", nested=True), True, False),
    (template("A", "<e>"), False, True),
    (template("<b>", "A", "<e>"), True, True),
    (roberta("<b>", "<e>"), True, True),
    ({"type": "BertProcessing", "sep": ["<e>", 0], "cls": ["<b>", 0]}, True, True),
]
