"""The model card (README.md) of a folder of GGUF files, as publishers write it: front matter, files, prompt, hashes.

Hugging Face hub documentation, "Model Cards" and "GGUF". The prompt format is recognised by the markers in the source
of the chat template, which is never rendered. Everything that comes from a header is quoted: a name cannot end a table,
a fence or the front matter.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from gguf.constants import Keys

from ggufsmith.container.errors import Usage
from ggufsmith.container.text import size
from ggufsmith.container.values import Metadata
from ggufsmith.naming.local import holds_path, is_id, is_local, is_path

General = Keys.General
MARK = "<!-- written by ggufsmith card -->"
MEASURED = ("<!-- measured by ggufsmith eval -->", "<!-- end of what was measured -->")
RUNNING = "## How to run"
TASKS = ("text-generation", "image-text-to-text", "audio-text-to-text", "any-to-any")
EXAMPLES = {
    "images": ("image", "image.jpg", "What is in this image?"),
    "sound": ("audio", "sound.wav", "What is said?"),
}
MAX_TEMPLATE = 4000  # characters of a template that is shown as it is
HUB = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?$", re.ASCII)


@dataclass(frozen=True)
class CardFile:
    """One model of the folder.

    names:    of its file, or of its shards in order.
    size:     bytes of all of them. bits: per weight.
    encoding: such as Q4_K_M; None if the header does not say.
    hashes:   SHA-256 of each file, or nothing.
    senses:   of a projector, what it is for: "images", "sound". Empty for a model.
    """

    names: tuple[str, ...]
    size: int
    bits: float
    encoding: str | None = None
    hashes: tuple[str, ...] = ()
    senses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Publisher:
    """What no header knows: where the files will lie, what they were made from, and by whom.

    Usage: a base model that is a path, not a name.
    """

    repo: str | None = None
    base_model: str | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        if self.base_model is not None and not is_id(self.base_model):
            raise Usage(
                f"the base model {self.base_model!r} is not a model on the hub",
                fix="Write it as org/name, or leave it out.",
            )


# Prompt formats, by markers that a template's source has all of; the first that fits. In the way publishers show them.
PROMPTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "Harmony",
        ("<|start|>", "<|channel|>"),
        "<|start|>system<|message|>{system_prompt}<|end|><|start|>user<|message|>{prompt}<|end|><|start|>assistant",
    ),
    (
        "Llama 3",
        ("<|start_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system_prompt}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "ChatML",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        "DeepSeek",
        ("<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>{system_prompt}<｜User｜>{prompt}<｜Assistant｜>",
    ),
    (
        "Gemma",
        ("<start_of_turn>", "<end_of_turn>"),
        "<bos><start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n",
    ),
    (
        "Phi-3",
        ("<|user|>", "<|assistant|>", "<|end|>"),
        "<|system|>\n{system_prompt}<|end|>\n<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
    ),
    (
        "Zephyr",
        ("<|user|>", "<|assistant|>"),
        "<|system|>\n{system_prompt}</s>\n<|user|>\n{prompt}</s>\n<|assistant|>\n",
    ),
    ("Llama 2", ("[INST]", "<<SYS>>"), "<s>[INST] <<SYS>>\n{system_prompt}\n<</SYS>>\n\n{prompt} [/INST]"),
    ("Mistral", ("[INST]", "[/INST]"), "<s>[INST] {prompt} [/INST]"),
    ("Alpaca", ("### Instruction:", "### Response:"), "### Instruction:\n{prompt}\n\n### Response:\n"),
    ("Vicuna", ("USER:", "ASSISTANT:"), "{system_prompt} USER: {prompt} ASSISTANT:"),
)

# What a file is good for, by its encoding; the first pattern that fits.
USES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"F32", "Full precision; for quantizing and comparing"),
        (r"B?F16", "Unquantized; for quantizing further, or where memory does not matter"),
        (r"Q8_0", "Practically the original"),
        (r"Q6_K", "Very close to the original"),
        (r"Q5_K.*", "Little loss; choose it if it fits"),
        (r"Q4_K_M", "Good balance of size and quality; the usual choice"),
        (r"Q4_K.*|IQ4_.*", "A little smaller than Q4_K_M, quality close to it"),
        (r"Q5_.*|Q4_.*", "Older type; fast on some devices, Q4_K_M is better for its size"),
        (r"(MX|NV)FP4.*", "Four-bit floats; for models that were trained with them"),
        (r"Q3_K.*|IQ3_.*", "Noticeable loss; for when memory is short"),
        (r"Q2_K.*|IQ2_.*|Q2_0", "Strong loss; for large models that would not fit otherwise"),
        (r"T?Q1_.*|IQ1_.*|TQ2_.*", "For models that were trained for it, or as a last resort"),
    )
)


def model_card(metadata: Metadata, files: Sequence[CardFile], publisher: Publisher, *, version: str) -> str:
    """The text of the card. metadata: of any of the files. version: of this program."""
    base = publisher.base_model or _hub_id(metadata)
    front = dict(front_matter(metadata, files, publisher))
    blocks = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**6)}---",
        MARK,
        f"# {_inline(_name(metadata) or 'Model')} GGUF",
        _introduction(metadata, base, version),
        *_prompt(metadata),
        "## Provided files",
        _table(files),
        *_hashes(files),
        RUNNING,
        *_running(files, publisher),
    ]
    return "\n\n".join(blocks) + "\n"


def with_measurements(card: str, table: str, says: str, command: str) -> str:
    """The card with a table of what was measured of its files: in the place of an earlier one, or before "How to run".

    table: in Markdown. says: the sentences below it. command: the one that made it.
    """
    begin, end = MEASURED
    section = "\n\n".join([begin, "## Quality", table, says, _fenced(command, "sh"), end])
    before, found, rest = card.partition(begin)
    if found and end in rest:
        return before + section + rest.partition(end)[2]
    before, found, rest = card.partition(f"\n{RUNNING}\n")
    return f"{before}\n{section}\n{found}{rest}" if found else f"{card.rstrip()}\n\n{section}\n"


def front_matter(metadata: Metadata, files: Sequence[CardFile], publisher: Publisher) -> Mapping[str, Any]:
    """The YAML block, as data."""
    license_name, license_link = _said(metadata, General.LICENSE_NAME), _said(metadata, General.LICENSE_LINK)
    base = publisher.base_model or _hub_id(metadata)
    found: dict[str, Any] = {
        "base_model": base,
        "base_model_relation": "quantized" if base else None,
        "license": _said(metadata, General.LICENSE),
        "license_name": license_name,
        "license_link": license_link,
        "language": _listed(metadata, General.LANGUAGES),
        "datasets": list(_datasets(metadata)),
        "pipeline_tag": _task(files),
        "library_name": "gguf",
        "quantized_by": publisher.author,
        "tags": list(dict.fromkeys(["gguf", *_encodings(files), *_tags(metadata)])),
    }
    return {key: _one_line(value) for key, value in found.items() if value}


def _task(files: Sequence[CardFile]) -> str:
    """What the hub calls the models: by what goes in beside text."""
    senses = {sense for file in files for sense in file.senses}
    return {frozenset(("images",)): "image-text-to-text", frozenset(("sound",)): "audio-text-to-text"}.get(
        frozenset(senses), "any-to-any" if senses else "text-generation"
    )


def _one_line(value: str | list[str]) -> str | list[str]:
    """A line of its own in a text could end the block."""
    return " ".join(value.split()) if isinstance(value, str) else [" ".join(each.split()) for each in value]


def prompt_format(template: str) -> tuple[str, str] | None:
    """Name and text of the prompt format whose markers a chat template's source has."""
    return next(
        ((name, text) for name, marks, text in PROMPTS if all(mark in template for mark in marks)),
        None,
    )


def use_of(encoding: str | None) -> str:
    """What a file with this encoding is good for; empty if nothing is known to say."""
    return next((text for pattern, text in USES if encoding and pattern.fullmatch(encoding)), "")


# ---- what the header says ----


def _said(metadata: Metadata, key: str) -> str | None:
    value = metadata.get(key)
    text = _text(value.data) if value and value.element is None else ""
    return text if text.strip() and not is_path(text) else None


def _name(metadata: Metadata) -> str | None:
    """The model's name, unless it is a path on the machine of whoever made the file."""
    name = _said(metadata, General.NAME)
    return None if name is None or is_local(name) else name


def _listed(metadata: Metadata, key: str) -> list[str]:
    value = metadata.get(key)
    texts = [_text(each) for each in value.data] if value and isinstance(value.data, tuple) else []
    return [text for text in texts if not holds_path(text)]


def _text(value: object) -> str:
    """Valid Unicode, whatever the header holds."""
    return str(value).encode("utf-8", "replace").decode()


def _hub_id(metadata: Metadata) -> str | None:
    """The model on the hub that the files were made from."""
    for key in (General.SOURCE_REPO_URL, General.REPO_URL):
        if match := HUB.match(_said(metadata, key) or ""):
            return match[1]
    return None


def _datasets(metadata: Metadata) -> Iterator[str]:
    index = 0
    while url := _said(metadata, General.DATASET_REPO_URL.format(id=index)):
        if match := HUB.match(url):
            yield match[1]
        index += 1


def _tags(metadata: Metadata) -> list[str]:
    known = ["imatrix"] if any(key.startswith("quantize.imatrix.") for key in metadata) else []
    return [*known, *(tag for tag in _listed(metadata, General.TAGS) if tag not in TASKS)]


def _encodings(files: Sequence[CardFile]) -> list[str]:
    return ["quantized"] if any(file.encoding not in (None, "F32", "F16", "BF16") for file in files) else []


# ---- the page ----


def _introduction(metadata: Metadata, base: str | None, version: str) -> str:
    what = f"[{base}](https://huggingface.co/{base})" if base else _inline(_name(metadata) or "a model")
    facts = []
    architecture = _said(metadata, General.ARCHITECTURE)
    if label := _said(metadata, General.SIZE_LABEL):
        facts.append(f"{_inline(label)} parameters")
    if architecture and (length := _said(metadata, Keys.LLM.CONTEXT_LENGTH.format(arch=architecture))):
        facts.append(f"a context of {_inline(length)} tokens")
    with_ = f" It has {' and '.join(facts)}." if facts else ""
    kind = f" (architecture {_inline(architecture)})" if architecture else ""
    return f"GGUF files of {what}{kind}, made with ggufsmith {version}, for llama.cpp and programs built on it.{with_}"


def _prompt(metadata: Metadata) -> Iterator[str]:
    template = _said(metadata, Keys.Tokenizer.CHAT_TEMPLATE)
    if template is None:
        return
    found = prompt_format(template)
    yield f"## Prompt template: {found[0]}" if found else "## Prompt template"
    if found:
        yield _fenced(found[1])
        return
    if len(template) > MAX_TEMPLATE:
        yield "The chat template is in the files; llama.cpp applies it with `--jinja`."
        return
    yield "The chat template in the files:"
    yield _fenced(template, "jinja")


def _table(files: Sequence[CardFile]) -> str:
    rows = ["| File | Type | Bits per weight | Size | Use |", "|---|---|---|---|---|"]
    for file in sorted(files, key=lambda file: file.size):
        name = _cell(file.names[0]) + (f" and {len(file.names) - 1} more" if len(file.names) > 1 else "")
        use = f"For {' and '.join(file.senses)}, with any of the models" if file.senses else use_of(file.encoding)
        rows.append(f"| {name} | {file.encoding or ''} | {file.bits:.2f} | {size(file.size)} | {use} |")
    return "\n".join(rows)


def _hashes(files: Sequence[CardFile]) -> Iterator[str]:
    listed = [f"{digest}  {name}" for file in files for name, digest in zip(file.names, file.hashes, strict=False)]
    if listed:
        yield "### SHA-256"
        yield _fenced("\n".join(listed))


def _running(files: Sequence[CardFile], publisher: Publisher) -> Iterator[str]:
    models = [each for each in files if not each.senses] or files
    projector = next((each for each in files if each.senses), None)
    file = next((each for each in models if each.encoding == "Q4_K_M"), min(models, key=lambda each: each.size))
    name, repo = file.names[0], publisher.repo
    shell = _quoted(name)
    tag = f":{file.encoding}" if file.encoding else ""
    if len(file.names) > 1:
        yield f"The model is in {len(file.names)} files: keep them in one folder, and pass the first one."
    yield "With llama.cpp:"
    yield _fenced(f"llama-cli -hf {repo}{tag}" if repo else f"llama-cli -m {shell} --jinja", "sh")
    if projector is not None and projector is not file:
        yield from _seeing(shell, projector, f"-hf {repo}{tag}" if repo else None)
    yield "With Ollama:"
    if repo:
        yield _fenced(f"ollama run hf.co/{repo}{tag}", "sh")
    elif len(file.names) > 1:
        yield _fenced(
            f"ggufsmith merge {shell} model.gguf\necho 'FROM ./model.gguf' > Modelfile\n"
            "ollama create my-model -f Modelfile\nollama run my-model",
            "sh",
        )
    else:
        modelfile = _quoted(f"FROM ./{name}" + (f"\nFROM ./{projector.names[0]}" if projector else ""))
        yield _fenced(f"echo {modelfile} > Modelfile\nollama create my-model -f Modelfile\nollama run my-model", "sh")
    yield "With llama-cpp-python:"
    load = f"Llama.from_pretrained({repo!r}, filename={name!r})" if repo else f"Llama(model_path={name!r})"
    yield _fenced(
        f"from llama_cpp import Llama\n\nllm = {load}\n"
        'answer = llm.create_chat_completion([{"role": "user", "content": "Hello!"}])\n'
        'print(answer["choices"][0]["message"]["content"])',
        "python",
    )


def _seeing(model: str, projector: CardFile, hub: str | None) -> Iterator[str]:
    """How the model gets images or sound. hub: the arguments that find both files there."""
    source = hub or f"-m {model} --mmproj {_quoted(projector.names[0])}"
    found = "; llama.cpp finds the projector in the repository by itself" if hub else ""
    yield f"With {' or '.join(projector.senses)}{found}:"
    examples = [EXAMPLES[sense] for sense in projector.senses]
    lines = [f"llama-mtmd-cli {source} --{flag} {name} -p {_quoted(prompt)}" for flag, name, prompt in examples]
    yield _fenced("\n".join([*lines, f"llama-server {source}  # its web page and API take files"]), "sh")


# ---- quoting ----


def _inline(text: str) -> str:
    """Text in a paragraph: one line, its Markdown and HTML switched off."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    """A file name in a table."""
    return f"`{text.replace('|', '&#124;').replace('`', '')}`"


def _fenced(text: str, language: str = "") -> str:
    """A code block, its fence longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def _quoted(text: str) -> str:
    """One word for a POSIX shell."""
    return text if re.fullmatch(r"[\w./-]+", text, re.ASCII) else "'" + text.replace("'", "'\\''") + "'"
