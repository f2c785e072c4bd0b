"""What is compared with: llama.cpp on a vocabulary-only GGUF, Hugging Face on the source, the reference converter."""

import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
from gguf.constants import TokenType
from llama_models import logged

from ggufsmith.container.layout import lay_out
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import Metadata, string
from ggufsmith.tokenizer.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT / ".." / "shared" / "tokenizers"
REFERENCE = ROOT / "build" / "reference"
PROBES = Path(__file__).with_name("probes.txt")

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SHAPE}

GEMMA2 = {
    **SHAPE,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
}

# The published vocabularies, with the ids that their config.json states.
REAL: Mapping[str, dict[str, Any]] = {
    "llama-2": {**LLAMA, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2},
    "llama-3": {**LLAMA, "vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": [128001, 128009]},
    "qwen2.5": {**QWEN2, "vocab_size": 151936, "bos_token_id": 151643, "eos_token_id": 151645},
    "deepseek-r1-distill-qwen": {**QWEN2, "vocab_size": 152064, "bos_token_id": 151643, "eos_token_id": 151643},
}


def real_folder(name: str) -> Path:
    """The folder of a published vocabulary."""
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"the published vocabulary {name} is not there: {folder}")
    return folder


def reference_metadata(folder: Path, config: Mapping[str, Any], scratch: Path) -> Metadata:
    """The `tokenizer.*` keys that the reference converter writes for `folder` with this config.json."""
    model = scratch / "model"
    model.mkdir()
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    out = scratch / "reference.gguf"
    command = [
        sys.executable,
        str(REFERENCE / "convert_hf_to_gguf.py"),
        str(model),
        "--vocab-only",
        "--outfile",
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(REFERENCE), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    if run.returncode:
        pytest.fail(f"the reference converter failed:\n{run.stderr[-2000:]}")
    with open_gguf(out) as file:
        return {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}


class LlamaVocabulary:
    """llama.cpp's tokenizer on a file that holds only a vocabulary."""

    def __init__(self, path: Path) -> None:
        import llama_cpp as llama

        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self.llama = llama
        self.model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self.vocab = llama.llama_model_get_vocab(self.model)

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        ids = (self.llama.llama_token * (len(raw) + 8))()
        count = self.llama.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), add_special, parse_special)
        if count < 0:
            raise RuntimeError(f"llama_tokenize returned {count} for {text!r}")
        return list(ids[:count])

    def is_eog(self, token: int) -> bool:
        return bool(self.llama.llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        self.llama.llama_model_free(self.model)


@contextmanager
def in_llama(vocabulary: Vocabulary, scratch: Path, name: str = "model") -> Iterator[LlamaVocabulary]:
    """The vocabulary, written to a GGUF of this general.name and loaded by llama.cpp. RuntimeError if it cannot be."""
    path = scratch / "vocabulary.gguf"
    general = {"general.architecture": string("llama"), "general.name": string(name)}
    path.write_bytes(lay_out({**general, **vocabulary.metadata()}, []).header)
    with logged():
        loaded = LlamaVocabulary(path)
        try:
            yield loaded
        finally:
            loaded.close()


class Oracle(Protocol):
    """The source's own tokenizer, and the input for which llama.cpp must give the same ids."""

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def for_llama(self, text: str) -> str: ...

    def comparable(self, text: str, *, parse_special: bool) -> bool: ...


class HuggingFace:
    """The tokenizers library on a tokenizer.json.

    Two things are llama.cpp's design and are done here before comparing, so that nothing else can differ: it applies no
    Unicode normalization (so it gets the normalized text), and tokens that look special are not parsed as ordinary text
    even where a publisher forgot to mark them.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for token in whole["added_tokens"]:
            token["special"] = token["special"] or token["content"].startswith(("<|", "<｜", "<unused"))
        self.normal = (whole["normalizer"] or {}).get("type") == "NFC"
        self.tokenizer = Tokenizer.from_str(json.dumps(whole))

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = not parse_special
        return list(self.tokenizer.encode(text, add_special_tokens=add_special).ids)

    def for_llama(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.normal else text

    def comparable(self, text: str, *, parse_special: bool) -> bool:
        return True


class SentencePiece:
    """The sentencepiece library on a tokenizer.model, added tokens cut out first, each fragment with its own space.

    (transformers 5 rebuilds Llama 2 as a tokenizers.Tokenizer that differs from sentencepiece on runs of spaces; the
    model was trained with sentencepiece.) Not comparable, where the vocabulary has user-defined pieces: texts that hold
    one which is a control token in GGUF, without parse_special, as sentencepiece cannot read it as plain text; and a
    visible space beside a real one, which sentencepiece takes for a run of spaces, but llama.cpp, which looks for
    user-defined tokens before it replaces spaces, does not.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary) -> None:
        from sentencepiece import SentencePieceProcessor

        self.processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        self.ids = {text: i for i, text in enumerate(vocabulary.tokens)}
        kinds = dict(zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True))
        self.user = [text for text, kind in kinds.items() if kind == TokenType.USER_DEFINED]
        self.special = [text for text, kind in kinds.items() if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
        self.atomic = [text for text in self.special if len(self.processor.encode(text)) == 1]

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        cut = sorted([*self.user, *(self.special if parse_special else ())], key=len, reverse=True)
        ids = [self.processor.bos_id()] if add_special else []
        for part in re.split(f"({'|'.join(map(re.escape, cut))})", text) if cut else [text]:
            ids += [self.ids[part]] if part in cut else self.processor.encode(part)
        return ids

    def for_llama(self, text: str) -> str:
        return text

    def comparable(self, text: str, *, parse_special: bool) -> bool:
        if self.user and re.search("▁ | ▁", text):
            return False
        return parse_special or not any(token in text for token in self.atomic)


def _plain(line: str) -> str:
    """A line of probes.txt: white space and characters that editors change are written visibly there."""
    for shown, character in zip("␠␤␉␍␀␡", " \n\t\r\0\x7f", strict=True):
        line = line.replace(shown, character)
    return re.sub("⟦([0-9A-F]+)⟧", lambda match: chr(int(match[1], 16)), line)


def probes(specials: list[str]) -> list[str]:
    """At least 500 texts: those of probes.txt, pairs of them, random edge characters, special tokens inside."""
    rng = Random(7)

    def pick(values: list[str]) -> str:
        return values[int(rng.random() * len(values))]

    base = [_plain(line) for line in PROBES.read_text(encoding="utf-8").splitlines()]
    result = list(base)
    result += [pick(base) + pick(["", " ", "\n", "  ", "\n\n", "\t"]) + pick(base) for _ in range(180)]
    edge = list(" \n\t\r.,!?'\"-_/()[]{}0123456789aAbBéßñ你はй𝟙😀\u0301\u200d\u00a0")
    edge += ["  ", "   ", "'s", "'LL", "ing", " the", "The", "\n\n", "123", "ไทย", "नम", "عر", "한국", "▁"]
    result += ["".join(pick(edge) for _ in range(1 + int(rng.random() * 24))) for _ in range(220)]
    result += [f"{pick(base)}{token}{pick(base)}" for token in specials for _ in range(2)]
    result += [" ".join(pick([*specials, *base]) for _ in range(4)) for _ in range(30)]
    result += [
        character * count for character in (" ", "\n", "\t", "a", "1", "=", "é", "😀") for count in (17, 64, 200)
    ]
    return list(dict.fromkeys(result))
