"""How the files of a card are downloaded and run: the commands and programs that it shows.

Every one of them is run in a test. Sources: llama.cpp's common/arg.cpp, Ollama's Modelfile reference, the documentation
of llama-cpp-python and of `hf download`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ggufsmith.naming.cardfacts import CardFacts
from ggufsmith.naming.quoting import file_word, word

# How llama-mtmd-cli is given what a projector is for, and what it may be asked.
SENSES = {
    "images": ("image", "image.jpg", "What is in this image?"),
    "sound": ("audio", "sound.wav", "What is said?"),
}
LM_STUDIO = "https://lmstudio.ai"

# What models that write nothing do -> the option with which llama-server does it.
SERVED = {"embedding": "--embeddings", "reranking": "--reranking"}


@dataclass(frozen=True)
class RunExample:
    """One way to run the files. title: the program's name. language: of the code, as Markdown names it."""

    title: str
    language: str
    code: str


def download_command(facts: CardFacts) -> str | None:
    """Fetches the file that the examples use; None without a repository."""
    file = facts.best
    if not facts.repo:
        return None
    what = f"--include {word(f'{file.folder}/*')}" if file.folder else word(file.names[0])
    return f"hf download {facts.repo} {what} --local-dir ."


def examples_of(facts: CardFacts) -> Iterator[RunExample]:
    """How to run the file that most people take; nothing for a vocabulary."""
    if facts.kind == "vocabulary":
        return
    yield from (RunExample(*each) for each in (_adapter if facts.kind == "adapter" else _model)(facts))


def _model(facts: CardFacts) -> Iterator[tuple[str, str, str]]:
    file, repo = facts.best, facts.repo
    tag = f":{file.encoding}" if file.encoding else ""
    named = f"-hf {repo}{tag}" if repo else f"-m {file_word(file.names[0])}"
    if facts.kind == "draft":
        place = f"-hfd {repo}{tag}" if repo else f"-md {file_word(file.names[0])}"
        yield "llama.cpp", "sh", f"llama-server -m MODEL.gguf {place} --spec-type {facts.drafts}"
        return
    if facts.kind in SERVED:
        yield "llama.cpp", "sh", f"llama-server {named} {SERVED[facts.kind]}"
    elif facts.kind == "completion":
        yield "llama.cpp", "sh", f"llama-completion {named} -no-cnv -p 'Once upon a time'"
    else:
        yield "llama.cpp", "sh", f"llama-cli {named} --jinja"
    if facts.projector:
        yield _seeing(facts, named)
    if facts.kind not in SERVED:
        yield "Ollama", "sh", _ollama(facts, tag)
    if facts.kind == "reranking":
        return
    yield "llama-cpp-python", "python", _python(facts)


def _seeing(facts: CardFacts, named: str) -> tuple[str, str, str]:
    """How the model gets images or sound. llama.cpp finds the projector in a repository by itself."""
    assert facts.projector is not None
    senses = facts.projector.senses
    named = named if facts.repo else f"{named} --mmproj {file_word(facts.projector.names[0])}"
    lines = [
        f"llama-mtmd-cli {named} --{flag} {name} -p {word(prompt)}"
        for flag, name, prompt in (SENSES[sense] for sense in senses)
    ]
    lines.append(f"llama-server {named}  # its web page and API take files")
    return f"llama.cpp, given {' or '.join(senses)}", "sh", "\n".join(lines)


def _ollama(facts: CardFacts, tag: str) -> str:
    """Ollama takes no shards, neither from a hub nor from a Modelfile."""
    file = facts.best
    if facts.repo and not file.folder:
        return f"ollama run hf.co/{facts.repo}{tag}"
    name, before = file.names[0], ""
    if file.folder:
        place = file.place if facts.repo else name
        name, before = "model.gguf", f"ggufsmith merge {file_word(place)} model.gguf\n"
        before = f"{download_command(facts)}\n{before}" if facts.repo else before
    more = [f"FROM ./{facts.projector.names[0]}"] if facts.projector else []
    return f"{before}{_created(f'FROM ./{name}', *more)}"


def _created(*lines: str) -> str:
    text = " ".join(map(word, lines))
    return f"printf '%s\\n' {text} > Modelfile\nollama create my-model -f Modelfile\nollama run my-model"


def _python(facts: CardFacts) -> str:
    file, repo = facts.best, facts.repo
    more = ", embedding=True" if facts.kind == "embedding" else ""
    if repo:
        rest = [name if not file.folder else f"{file.folder}/{name}" for name in file.names[1:]]
        also = f", additional_files={rest!r}" if rest else ""
        load = f"Llama.from_pretrained({repo!r}, filename={file.place!r}{also}{more})"
    else:
        load = f"Llama(model_path={file.names[0]!r}{more})"
    ask = {
        "embedding": 'print(llm.embed("Hello!"))',
        "completion": 'print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])',
    }.get(
        facts.kind,
        'answer = llm.create_chat_completion([{"role": "user", "content": "Hello!"}])\n'
        'print(answer["choices"][0]["message"]["content"])',
    )
    return f"from llama_cpp import Llama\n\nllm = {load}\n{ask}"


def _adapter(facts: CardFacts) -> Iterator[tuple[str, str, str]]:
    """An adapter runs on a GGUF file of its base model, which is called base.gguf here."""
    name = facts.best.names[0]
    yield "llama.cpp", "sh", f"llama-cli -m base.gguf --lora {file_word(name)}"
    yield "Ollama", "sh", _created("FROM ./base.gguf", f"ADAPTER ./{name}")
    yield (
        "llama-cpp-python",
        "python",
        f"from llama_cpp import Llama\n\nllm = Llama(model_path='base.gguf', lora_path={name!r})\n"
        'print(llm("Once upon a time", max_tokens=64)["choices"][0]["text"])',
    )
