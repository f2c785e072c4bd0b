"""The model card (README.md) of a folder of GGUF files, as publishers write it: front matter, files, prompt, hashes.

Hugging Face hub documentation, "Model Cards" and "GGUF". Everything that comes from a header is quoted: a name cannot
end a table, a fence or the front matter.
"""

import re
from collections.abc import Iterator, Sequence

import yaml

from ggufsmith.container.provenance import sum_line
from ggufsmith.container.text import counted
from ggufsmith.container.values import Metadata
from ggufsmith.naming.cardfacts import CardFacts, CardFile, Publisher, facts_of
from ggufsmith.naming.cardrun import LM_STUDIO, download_command, examples_of
from ggufsmith.naming.quoting import code, fenced, inline

MARK = "<!-- written by ggufsmith card -->"
MEASURED = ("<!-- measured by ggufsmith eval -->", "<!-- end of what was measured -->")
MEASURED_HEADING = "## Quality"
RUNNING = "## How to run"
# What was measured before: between both marks; from its heading to the second; from the first to the next heading.
EARLIER = [
    re.compile(pattern.format(*map(re.escape, MEASURED), re.escape(MEASURED_HEADING)), re.DOTALL)
    for pattern in (
        r"{0}.*?{1}",
        r"(?m:^){2}\n(?:(?!\n#).)*?{1}",
        r"{0}(?:\s*{2}\n)?(?:(?!\n#).)*?(?=\n\n#|\n*\Z)",
    )
]
MAX_TEMPLATE = 4000  # characters of a template that is shown as it is


def model_card(metadata: Metadata, files: Sequence[CardFile], publisher: Publisher, *, version: str) -> str:
    """The text of the card. metadata: of any of the files. version: of this program."""
    return card_text(facts_of(metadata, files, publisher, version=version))


def card_text(facts: CardFacts) -> str:
    """The card as it is by default."""
    blocks = [
        front_matter_text(facts),
        MARK,
        f"# {inline(facts.title)} {'LoRA ' if facts.kind == 'adapter' else ''}GGUF",
        _introduction(facts),
        *_prompt(facts),
        "## Provided files",
        _table(facts),
        *_importance(facts),
        *_hashes(facts.files),
        *_download(facts),
        *_running(facts),
    ]
    return "\n\n".join(blocks) + "\n"


def with_measurements(card: str, table: str, says: str, command: str) -> str:
    """The card with a table of what was measured of its files: in the place of an earlier one, or before "How to run".

    table: in Markdown. says: the sentences below it. command: the one that made it. Line ends stay as they are. Where
    one of the marks was lost, the earlier section ends at the next heading, or begins at its own.
    """
    if "\r\n" in card:
        return with_measurements(card.replace("\r\n", "\n"), table, says, command).replace("\n", "\r\n")
    begin, end = MEASURED
    section = "\n\n".join([begin, MEASURED_HEADING, table, says, fenced(command, "sh"), end])
    if earlier := next(filter(None, (each.search(card) for each in EARLIER)), None):
        return card[: earlier.start()] + section + card[earlier.end() :]
    before, found, rest = card.partition(f"\n{RUNNING}\n")
    return f"{before}\n{section}\n{found}{rest}" if found else f"{card.rstrip()}\n\n{section}\n"


def front_matter_text(facts: CardFacts) -> str:
    """The YAML block with its fences."""
    front = dict(facts.front)
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=10**6)}---"


# ---- the page ----


def _introduction(facts: CardFacts) -> str:
    base = facts.base_model
    link = f"[{base}](https://huggingface.co/{base})" if base else ""
    what = link or inline(facts.name or "a model")
    if facts.kind == "adapter":
        what = f"the LoRA adapter {inline(facts.name or 'of this folder')}" + (f" for {link}" if link else "")
    kind = f" (architecture {inline(facts.architecture)})" if facts.architecture else ""
    known = [f"{inline(facts.size_label)} parameters"] if facts.size_label and facts.kind != "adapter" else []
    known += [f"a context of {inline(facts.context_length)} tokens"] if facts.context_length else []
    with_ = f" It has {' and '.join(known)}." if known else ""
    vocabulary = " The file holds the vocabulary alone, for tokenizing, and cannot be run." * (
        facts.kind == "vocabulary"
    )
    by = f" Quantized by {inline(facts.author)}." if facts.author else ""
    made = f"made with ggufsmith {facts.version}, for llama.cpp and programs built on it."
    return f"GGUF files of {what}{kind}, {made}{with_}{vocabulary}{by}"


def _prompt(facts: CardFacts) -> Iterator[str]:
    template = facts.template
    if facts.kind == "completion":
        yield "The files have no chat template: the model continues a text."
    if template is None or facts.kind != "chat":
        return
    yield f"## Prompt template: {facts.prompt[0]}" if facts.prompt else "## Prompt template"
    if facts.prompt:
        yield fenced(facts.prompt[1])
        return
    if len(template) > MAX_TEMPLATE:
        yield "The chat template is in the files; llama.cpp applies it with `--jinja`."
        return
    yield "The chat template in the files:"
    yield fenced(template, "jinja")


def _table(facts: CardFacts) -> str:
    rows = ["| File | Type | Bits per weight | Size | Use |", "|---|---|---|---|---|"]
    for file in facts.files:
        name, url = code(file.names[0], cell=True), facts.url(file)
        shown = f"[{name}]({url})" if url else name
        shown += f" and {len(file.names) - 1} more" if len(file.names) > 1 else ""
        use = "" if facts.kind in ("adapter", "vocabulary") else file.use
        bits = f"{file.bits:.2f}" if file.bits else ""
        kind = "" if facts.kind == "vocabulary" else file.encoding or ""
        rows.append(f"| {shown} | {kind} | {bits} | {file.size_text} | {use} |")
    return "\n".join(rows)


def _importance(facts: CardFacts) -> Iterator[str]:
    """What the importance matrix was made of, and which files have it."""
    if facts.imatrix is None:
        return
    text, chunks = facts.imatrix
    of = f" of {code(text)}" if text else ""
    many = f", {counted(chunks, 'chunk')}" if chunks else ""
    without = [file.encoding or file.names[0] for file in facts.files if not file.imatrix]
    but = f", but {', '.join(map(inline, without))}," if without else ""
    yield f"All files{but} were made with an importance matrix{of}{many}."


def _hashes(files: Sequence[CardFile]) -> Iterator[str]:
    listed = [sum_line(digest, name) for file in files for name, digest in zip(file.names, file.hashes, strict=False)]
    if listed:
        yield "### SHA-256"
        yield fenced("\n".join(listed))


def _download(facts: CardFacts) -> Iterator[str]:
    command = download_command(facts)
    if command:
        yield "## How to download"
        yield fenced(f"pip install huggingface_hub\n{command}", "sh")


def _running(facts: CardFacts) -> Iterator[str]:
    examples = list(examples_of(facts))
    if not examples:
        return
    yield RUNNING
    if facts.best.folder:
        yield f"The model is in {len(facts.best.names)} files: keep them in one folder, and pass the first one."
    if facts.kind == "adapter":
        base = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else "its base"
        yield f"The adapter runs on a GGUF file of {base}, which is called base.gguf here."
    if facts.kind == "draft":
        yield "The files guess tokens for a larger model, which is called MODEL.gguf here."
    for each in examples:
        yield f"With {each.title}:"
        yield fenced(each.code, each.language)
    if facts.repo and facts.kind == "chat":
        yield f"With [LM Studio]({LM_STUDIO}): search for `{facts.repo}`."
