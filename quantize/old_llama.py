"""The Llama files from before GGUF, opened as the GGUF that each would be, so that all that reads GGUF reads them too.

Tensors go under today's names; keys are made from the header and the shapes. What neither says is assumed, and said so.

Source: convert_llama_ggml_to_gguf.py of llama.cpp, for the defaults and for the types of the tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gguf.constants import GGML_QUANT_VERSION, GGUF_VERSION, MODEL_ARCH, Keys, LlamaFileType, TokenType
from gguf.tensor_mapping import get_tensor_name_map

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.ggml import ALIGNMENT, GgmlFile, open_ggml
from ggufsmith.container.reader import Gguf, TensorInfo
from ggufsmith.container.shards import SHARD, SUFFIX, GgufSet
from ggufsmith.container.text import counted
from ggufsmith.container.values import Metadata, Value, array, f32, string, strings, u32
from ggufsmith.naming.filename import FileName, parse
from ggufsmith.quantize.opened import OpenedModel

ARCH = "llama"
MAX_LAYERS = 4096
EPS, CONTEXT = 5e-6, 2048
SPECIAL = {0: (b"<unk>", TokenType.UNKNOWN), 1: (b"<s>", TokenType.CONTROL), 2: (b"</s>", TokenType.CONTROL)}
BYTES = range(3, 259)  # ids of the tokens for single bytes
OLD_NAME = re.compile(r"(\.ggml\w*)?([.-]q\d\w*|[.-]f(16|32))?\.(bin|ggml)", re.IGNORECASE)


def open_old_llama(path: Path) -> OpenedModel:
    """Open a `ggml`, `ggmf` or `ggjt` file.

    Raises what `open_ggml` raises; Malformed if it is not a whole Llama model.
    """
    file = open_ggml(path)
    gguf = Gguf(path, GGUF_VERSION, ALIGNMENT, {}, {}, 0, file.size, file.fd)
    try:
        return _old_model(file, gguf)
    except BaseException:
        gguf.close()
        raise


def _old_model(file: GgmlFile, gguf: Gguf) -> OpenedModel:
    tensors = _renamed(file)
    heads, keys = _sizes(file, tensors)
    name = old_name(file.path.name)
    general: Metadata = {
        Keys.General.ARCHITECTURE: string(ARCH),
        Keys.General.NAME: string(name.format().removesuffix(SUFFIX)),
        Keys.General.QUANTIZATION_VERSION: u32(GGML_QUANT_VERSION),
    }
    if file.sizes.file_type in set(LlamaFileType):
        general[Keys.General.FILE_TYPE] = u32(file.sizes.file_type)
    opened = replace(gguf, metadata={**general, **keys, **_vocabulary(file)}, tensors=MappingProxyType(tensors))
    notes = [
        f"{file.variant.name}: the file stores no token types; only unk, bos, eos and byte tokens are known. To get "
        f"added tokens right as well, take the vocabulary from the original model with --tokenizer FOLDER"
    ]
    if not file.variant.scores:
        notes.append("ggml files store no token scores, so text will be tokenized badly; pass --tokenizer FOLDER")
    grouped = (f"{heads} query heads share a key-value head, according to the shape of attn_k",) if heads > 1 else ()
    return OpenedModel(GgufSet.of(opened), name, _assumed(), tuple(notes), grouped)


def _assumed() -> Mapping[str, str]:
    context, eps = (key.format(arch=ARCH) for key in (Keys.LLM.CONTEXT_LENGTH, Keys.Attention.LAYERNORM_RMS_EPS))
    return {
        context: f"assumed {CONTEXT} (Llama 1; Llama 2 has 4096): --override-kv {context}=int:4096",
        eps: f"assumed {EPS}, between Llama 1 (1e-6) and Llama 2 (1e-5): --override-kv {eps}=float:1e-5",
    }


def _renamed(file: GgmlFile) -> dict[str, TensorInfo]:
    """The tensors under today's names; every one of a Llama model, and no other."""
    layers = file.sizes.layers
    if not 0 < layers <= min(MAX_LAYERS, len(file.tensors)):
        raise Malformed(
            f"the header says {layers} layers, but the file has {len(file.tensors)} tensors", where=file.path
        )
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, layers)
    found: dict[str, TensorInfo] = {}
    for old, tensor in file.tensors.items():
        name = names.get_name(old, try_suffixes=(".weight",))
        if name is None or name in found:
            raise Unsupported(f"{old}: not a tensor of a Llama model in this format", where=file.path)
        found[name] = replace(tensor, name=name)
    wanted = _shapes(file, 0, 0)
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if missing or extra:
        raise Malformed(
            f"{counted(len(missing), 'tensor is', 'tensors are')} missing, {len(extra)} are not of a Llama model",
            where=file.path,
            also=[*missing[:10], *extra[:10]],
            fix="The file is incomplete, or one of several parts. Parts must be joined first, with a llama.cpp of "
            "that time.",
        )
    return found


def _shapes(file: GgmlFile, ff: int, kv: int) -> dict[str, tuple[int, ...]]:
    """What a Llama model consists of, for these lengths of the feed-forward and of all keys together."""
    vocab, embd = file.sizes.vocab, file.sizes.embd
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocab, embd),
        "output_norm.weight": (embd,),
        "output.weight": (vocab, embd),
    }
    for block in range(file.sizes.layers):
        for name, shape in (
            ("attn_norm", (embd,)),
            ("attn_q", (embd, embd)),
            ("attn_k", (kv, embd)),
            ("attn_v", (kv, embd)),
            ("attn_output", (embd, embd)),
            ("ffn_norm", (embd,)),
            ("ffn_gate", (ff, embd)),
            ("ffn_down", (embd, ff)),
            ("ffn_up", (ff, embd)),
        ):
            shapes[f"blk.{block}.{name}.weight"] = shape
    return shapes


def _sizes(file: GgmlFile, tensors: Mapping[str, TensorInfo]) -> tuple[int, Metadata]:
    """Query heads per key-value head, and the keys of the architecture. Malformed if the shapes do not fit."""
    sizes = file.sizes
    if not sizes.heads or sizes.embd % sizes.heads:
        raise Malformed(f"a width of {sizes.embd} cannot be divided among {sizes.heads} heads", where=file.path)
    head = sizes.embd // sizes.heads
    ff, kv = tensors["blk.0.ffn_gate.weight"].shape[0], tensors["blk.0.attn_k.weight"].shape[0]
    shared, rest = divmod(sizes.embd, kv)
    wrong = [
        f"{name}: {list(tensors[name].shape)}, not {list(shape)}"
        for name, shape in _shapes(file, ff, kv).items()
        if tensors[name].shape != shape
    ]
    if wrong or rest or kv % head or sizes.rotary != head:
        raise Malformed(
            f"shapes do not fit {sizes.heads} heads, width {sizes.embd}, {sizes.rotary} rotary dimensions and "
            f"{sizes.vocab} tokens",
            where=file.path,
            also=wrong[:10],
            fix="The parts of a model (FILE, FILE.1, ...) must be joined first, with a llama.cpp of that time.",
        )
    values = {
        Keys.LLM.CONTEXT_LENGTH: u32(CONTEXT),
        Keys.LLM.EMBEDDING_LENGTH: u32(sizes.embd),
        Keys.LLM.BLOCK_COUNT: u32(sizes.layers),
        Keys.LLM.FEED_FORWARD_LENGTH: u32(ff),
        Keys.Attention.HEAD_COUNT: u32(sizes.heads),
        Keys.Attention.HEAD_COUNT_KV: u32(kv // head),
        Keys.Attention.LAYERNORM_RMS_EPS: f32(EPS),
        Keys.LLM.VOCAB_SIZE: u32(sizes.vocab),
        Keys.Rope.DIMENSION_COUNT: u32(sizes.rotary),
    }
    return shared, {key.format(arch=ARCH): value for key, value in values.items()}


def _vocabulary(file: GgmlFile) -> Metadata:
    """A SentencePiece vocabulary, as far as the file has it."""
    texts, types = zip(*(_token(token, text) for token, (text, _) in enumerate(file.tokens)), strict=True)
    keys: dict[str, Value] = {
        Keys.Tokenizer.MODEL: string(ARCH),
        Keys.Tokenizer.PRE: string("default"),
        Keys.Tokenizer.LIST: strings(text.decode("utf-8", "surrogateescape") for text in texts),
        Keys.Tokenizer.SCORES: array(np.array([score for _, score in file.tokens], np.float32)),
        Keys.Tokenizer.TOKEN_TYPE: array(np.array(types, np.int32)),
    }
    ids = (Keys.Tokenizer.UNK_ID, Keys.Tokenizer.BOS_ID, Keys.Tokenizer.EOS_ID)
    return keys | {key: u32(token) for token, key in enumerate(ids) if token < len(texts)}


def _token(token: int, text: bytes) -> tuple[bytes, TokenType]:
    if token in SPECIAL:
        return SPECIAL[token]
    if not text:
        return text, TokenType.CONTROL
    if token in BYTES and len(text) == 1:
        return f"<0x{text[0]:02X}>".encode(), TokenType.BYTE
    return text.replace(b" ", "▁".encode()), TokenType.NORMAL


def old_name(file: str) -> FileName:
    """What to call outputs of an old file: llama-2-7b.ggmlv3.q4_0.bin is llama-2-7b."""
    stem = OLD_NAME.sub("", file) or "model"
    return replace(parse(SHARD.sub("", stem) + SUFFIX), encoding=None)
