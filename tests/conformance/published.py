"""Published vocabularies as folders of Hugging Face.

llama.cpp carries the vocabularies of many models as GGUF files, made by its own converter from the publishers'
folders, with texts and the ids that the publishers' tokenizers give for them (convert_hf_to_gguf_update.py). Such a
file is turned back into a folder here; that the folder is the publisher's again is checked by those ids, and by the
reference converter, which recognises a vocabulary by a hash of the ids of a long text. Two packages carry the files of
Mistral and DeepSeek as they were published.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf.constants import Keys

import checkpoints
from ggufsmith.container.reader import open_gguf
from ggufsmith.container.values import Metadata
from ggufsmith.tokenizer.restore import vocabulary_of
from ggufsmith.tokenizer.write import tokenizer_files
from needed import need

Json = dict[str, Any]
SEPARATOR = "\n__ggml_vocab_test__\n"

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
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", **SHAPE}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **SHAPE}
ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
BERT = {"architectures": ["BertModel"], "model_type": "bert", **ENCODER, "type_vocab_size": 2}
XLMR = {"architectures": ["XLMRobertaModel"], "model_type": "xlm-roberta", **ENCODER, "type_vocab_size": 1}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", **SHAPE, "sliding_window": 2047}

# What Qwen 2.5 and DeepSeek-R1-Distill-Qwen have behind the 151643 tokens of Qwen 2; True: it is special.
QWEN_TOKENS = {
    **dict.fromkeys("<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|>".split(), True),
    **dict.fromkeys("<|image_pad|> <|video_pad|>".split(), True),
    **dict.fromkeys("<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|>".split(), False),
    **dict.fromkeys("<|repo_name|> <|file_sep|>".split(), False),
}
QWEN25_TOKENS = {
    **dict.fromkeys("<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|>".split(), True),
    **dict.fromkeys("<|box_start|> <|box_end|>".split(), True),
    **QWEN_TOKENS,
}
R1_TOKENS = {
    "<｜end▁of▁sentence｜>": True,
    "<｜User｜>": False,
    "<｜Assistant｜>": False,
    "<｜begin▁of▁sentence｜>": True,
    **dict.fromkeys("<|EOT|> <think> </think>".split(), False),
    **QWEN_TOKENS,
}


@dataclass(frozen=True)
class Published:
    """One model's vocabulary.

    config:     config.json, of a small model that has it.
    generation: generation_config.json, as far as tokens go.
    gguf:       NAME of models/ggml-vocab-NAME.gguf, which the folder is made from; or
    files:      name in the folder -> path under models/ of a file of the publisher.
    normalized: added tokens are looked for in the normalized text, as the publisher has it, which GGUF does not keep.
    added:      added tokens that take the place of those in the GGUF file, in the order of their ids; True: special.
    tokenizer:  what tokenizer_config.json says besides.
    template:   name of a chat template under models/templates; jinja: in a file of its own, as newer folders have it.
    weights:    the kind of small weights (fixtures/checkpoints.py) that goes with it in tests of whole models, or "".
    """

    config: Json
    generation: Json = field(default_factory=dict)
    gguf: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    normalized: bool = False
    added: Mapping[str, bool] = field(default_factory=dict)
    tokenizer: Json = field(default_factory=dict)
    template: str = ""
    jinja: bool = False
    weights: str = ""


def llama(size: int, bos: int, eos: int | list[int], **more: Any) -> Json:
    return {**LLAMA, "vocab_size": size, "bos_token_id": bos, "eos_token_id": eos, **more}


SPM = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
SPM |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 4096}

FOLDERS: Mapping[str, Published] = {
    "llama-2": Published(llama(32000, 1, 2), {"bos_token_id": 1, "eos_token_id": 2}, gguf="llama-spm", weights="llama"),
    "llama-3": Published(
        llama(128256, 128000, [128001, 128009]),
        {"bos_token_id": 128000, "eos_token_id": [128001, 128009]},
        gguf="llama-bpe",
        tokenizer={"eos_token": "<|eot_id|>"},
        template="meta-llama-Llama-3.1-8B-Instruct",
        weights="llama-3",
    ),
    "qwen2.5": Published(
        {**QWEN2, "vocab_size": 151936, "bos_token_id": 151643, "eos_token_id": 151645},
        {"bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643},
        gguf="qwen2",
        added=QWEN25_TOKENS,
        tokenizer={"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        template="Qwen-Qwen2.5-7B-Instruct",
        weights="qwen2",
    ),
    "deepseek-r1-distill-qwen": Published(
        {**QWEN2, "vocab_size": 152064, "bos_token_id": 151643, "eos_token_id": 151643},
        {"bos_token_id": 151646, "eos_token_id": 151643},
        gguf="qwen2",
        added=R1_TOKENS,
        tokenizer={
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": None,
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
            "pad_token": "<｜end▁of▁sentence｜>",
        },
        template="deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
        jinja=True,
        weights="qwen2",
    ),
    "mistral-v0.1": Published(
        {**MISTRAL, "vocab_size": 32000, "bos_token_id": 1, "eos_token_id": 2},
        {"bos_token_id": 1, "eos_token_id": 2},
        files={"tokenizer.model": "mistral/tokenizer.model.v1"},
        tokenizer=SPM,
        weights="mistral",
    ),
    "mistral-v0.3": Published(
        {**MISTRAL, "vocab_size": 32768, "bos_token_id": 1, "eos_token_id": 2},
        {"bos_token_id": 1, "eos_token_id": 2},
        files={"tokenizer.model": "mistral/mistral_instruct_tokenizer_240323.model.v3"},
        tokenizer=SPM,
    ),
    "phi-3": Published(
        {**PHI3, "vocab_size": 32064, "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000},
        {"bos_token_id": 1, "eos_token_id": [32007, 32001, 32000], "pad_token_id": 32000},
        gguf="phi-3",
        template="microsoft-Phi-3.5-mini-instruct",
    ),
    "deepseek-v4": Published(
        llama(129280, 0, 1),
        {"bos_token_id": 0, "eos_token_id": 1},
        files={
            "tokenizer.json": "deepseek/tokenizer.json",
            "tokenizer_config.json": "deepseek/tokenizer_config.json",
        },
    ),
    "deepseek-llm": Published(llama(102400, 100000, 100001), gguf="deepseek-llm", normalized=True),
    "deepseek-coder": Published(llama(32256, 32013, 32014), gguf="deepseek-coder", normalized=True),
    "starcoder": Published(llama(49152, 0, 0), gguf="starcoder"),
    "gpt-2": Published(llama(50257, 50256, 50256), gguf="gpt-2"),
    "mpt": Published(llama(50432, 0, 0), gguf="mpt"),  # that of GPT-NeoX and Pythia
    "falcon": Published(llama(65024, 11, 11), gguf="falcon"),
    "refact": Published(llama(49216, 0, 0), gguf="refact"),
    "qwen3.5": Published(
        {**QWEN2, "vocab_size": 151936, "bos_token_id": 151643, "eos_token_id": 151643}, gguf="qwen35"
    ),
    "command-r": Published(llama(256000, 5, 255001), gguf="command-r"),
    "bge": Published({**BERT, "vocab_size": 30522, "pad_token_id": 0}, gguf="bert-bge"),
    "nomic-moe": Published(
        {**XLMR, "vocab_size": 250048, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
        gguf="nomic-bert-moe",
        tokenizer={"clean_up_tokenization_spaces": True},
    ),
}
WHOLE = tuple(name for name, record in FOLDERS.items() if record.weights)


def gguf_path(name: str) -> Path:
    """The GGUF file of a vocabulary of llama.cpp."""
    return need("vocabularies") / f"ggml-vocab-{name}.gguf"


def published_keys(name: str) -> Metadata:
    """The `tokenizer.*` keys that llama.cpp published for a vocabulary."""
    with open_gguf(gguf_path(name)) as file:
        keys = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    keys.pop(Keys.Tokenizer.TOKEN_TYPE_COUNT, None)  # a size of the model
    return keys


def published_ids(name: str) -> list[tuple[str, list[int]]]:
    """Texts, and the ids that the publisher's tokenizer gives for each, without what is put around a text."""
    path = gguf_path(name)
    texts = Path(f"{path}.inp").read_text(encoding="utf-8").split(SEPARATOR)[:-1]
    lines = Path(f"{path}.out").read_text(encoding="utf-8").splitlines()
    return [(text, [int(token) for token in line.split()]) for text, line in zip(texts, lines, strict=True)]


def write(name: str, folder: Path) -> Json:
    """Write the files of a published vocabulary, without config.json and weights; what its config.json says."""
    record, models = FOLDERS[name], need("vocabularies")
    folder.mkdir(parents=True, exist_ok=True)
    for file, path in record.files.items():
        shutil.copy(models / path, folder / file)
    if record.gguf:
        with open_gguf(gguf_path(record.gguf)) as gguf:
            files = tokenizer_files(vocabulary_of(gguf.metadata, gguf.path), "LlamaTokenizer", 4096)
        for file, content in files.items():
            (folder / file).write_bytes(content)
    path = folder / "tokenizer_config.json"
    config = {**(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}), **record.tokenizer}
    if record.normalized:
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for entry in (*whole["added_tokens"], *config["added_tokens_decoder"].values()):
            entry["normalized"] = True
        _write_json(folder / "tokenizer.json", whole)
    if record.added:
        config["added_tokens_decoder"] = _replace_added(folder / "tokenizer.json", record.added, record.tokenizer)
    if record.template:
        template = (models / "templates" / f"{record.template}.jinja").read_text(encoding="utf-8")
        if record.jinja:
            config.pop("chat_template", None)
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")
        else:
            config["chat_template"] = template
    _write_json(path, config)
    if record.generation:
        _write_json(folder / "generation_config.json", record.generation)
    return record.config


def write_model(name: str, folder: Path, *, dtype: str = "bfloat16") -> Path:
    """Write a small model of WHOLE with its published vocabulary."""
    record = FOLDERS[name]
    ids = {key: value for key, value in record.config.items() if key == "vocab_size" or key.endswith("_token_id")}
    checkpoints.write(record.weights, folder, dtype=dtype, **ids, tie_word_embeddings=False)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    write(name, folder)
    return folder


def _replace_added(path: Path, added: Mapping[str, bool], settings: Json) -> Json:
    """Give a tokenizer.json other added tokens behind its vocabulary; what tokenizer_config.json says of them."""
    whole = json.loads(path.read_text(encoding="utf-8"))
    first = len(whole["model"]["vocab"])
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = {
        first + k: {"content": text, **flags, "special": special} for k, (text, special) in enumerate(added.items())
    }
    whole["added_tokens"] = [{"id": token, **entry} for token, entry in tokens.items()]
    if settings["add_bos_token"]:
        bos = settings["bos_token"]
        entry = {"SpecialToken": {"id": bos, "type_id": 0}}
        a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        (number,) = (token for token, entry in tokens.items() if entry["content"] == bos)
        template = {
            "type": "TemplateProcessing",
            "single": [entry, a],
            "pair": [entry, a, entry, b],
            "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
        }
        whole["post_processor"] = {"type": "Sequence", "processors": [whole["post_processor"], template]}
    _write_json(path, whole)
    return {str(token): entry for token, entry in tokens.items()}


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8", newline="\n")
