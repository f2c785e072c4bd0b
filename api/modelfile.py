"""Modelfiles of Ollama: what a GGUF file needs to be run there as the model was meant.

The chat template becomes one in Ollama's own language (Go's text/template) if its format is known (`evaluate.chat`).
Template and stop words say the same as llama.cpp and transformers; parameters are those of generation_config.json,
which the header has as general.sampling.*.

Sources: Ollama's documentation, "Modelfile Reference" and "Template"; Go's documentation of text/template.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGUFType, Keys

from ggufsmith.container.drafts import is_draft
from ggufsmith.container.encoders import is_encoder
from ggufsmith.container.errors import OutputConflict, Unsupported, Usage
from ggufsmith.container.replace import replace_text
from ggufsmith.container.shards import GgufSet, open_gguf_set
from ggufsmith.container.text import shell_command
from ggufsmith.container.untrusted import begins
from ggufsmith.container.values import Metadata
from ggufsmith.evaluate.chat import BOS, EOS, PLAIN, ChatFormat, recognised
from ggufsmith.quantize.model_check import kind_of, other_kind

MARK = "# written by ggufsmith modelfile"
# Key of the header -> the parameter's name.
PARAMETERS = {
    Keys.General.SAMPLING_TEMP: "temperature",
    Keys.General.SAMPLING_TOP_K: "top_k",
    Keys.General.SAMPLING_TOP_P: "top_p",
    Keys.General.SAMPLING_MIN_P: "min_p",
    Keys.General.SAMPLING_PENALTY_REPEAT: "repeat_penalty",
    Keys.General.SAMPLING_PENALTY_LAST_N: "repeat_last_n",
}
ENDS = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)
# Pre-tokenizers of byte-level vocabularies that begin with the first token, if the header does not say.
BEGINNING = "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken chameleon".split()
COMPLETION = "{{ .Prompt }}"
UNKNOWN = "the format of the chat template is not known here, so the Modelfile has no TEMPLATE, and Ollama guesses one"


@dataclass(frozen=True)
class Modelfile:
    """text: of the file. notes: what could not be said in it. format: of the chat, as `evaluate.chat` names it."""

    text: str
    notes: tuple[str, ...]
    format: str | None


def modelfile_path(file: Path) -> Path:
    """Where the Modelfile of a GGUF file stands."""
    return file.with_name(f"{file.name.removesuffix('.gguf')}.Modelfile")


def modelfile_of(
    file: Path,
    *,
    base: Path | None = None,
    context: int | None = None,
    beside: Path | None = None,
    projector: Path | None = None,
) -> Modelfile:
    """The Modelfile of a model, or of an adapter with its base. base: a GGUF file. context: tokens (num_ctx).

    beside: where it will stand; by default beside the file. projector: of a model that sees or hears; Ollama knows it
    by what is in it, so that it is one more FROM.

    Unsupported for a model in several files, and for what is neither a model nor an adapter. Usage for a vocabulary, an
    adapter without base, a base for a model, a projector that is none, and a name that a Modelfile cannot hold.
    """
    encoders = [] if projector is None else [f"FROM {_place(checked_projector(projector), beside or file)}"]
    with open_gguf_set(file) as model:
        adapter = _data(model.metadata, Keys.General.TYPE) == GGUFType.ADAPTER
        if not adapter and (failure := other_kind(model.metadata, (), file)):
            raise failure
        _check(file, model, base, adapter=adapter)
        if not adapter:
            return _written(model.metadata, [f"FROM {_place(file, beside or file)}", *encoders], context)
    if base is None:
        raise Usage("an adapter needs a base model", where=file, fix="Name its GGUF file with --base.")
    with open_gguf_set(base) as under:
        _check(base, under, None, adapter=False)
        lines = [f"FROM {_place(base, beside or file)}", *encoders, f"ADAPTER {_place(file, beside or file)}"]
        return _written(under.metadata, lines, context)


def is_projector(metadata: Metadata) -> bool:
    """Whether a file holds the encoders of a model that sees or hears."""
    return bool(kind_of(metadata, ()) == GGUFType.MMPROJ)


def checked_projector(path: Path) -> Path:
    """The path. Usage if it is not that of a projector."""
    with open_gguf_set(path) as found:
        if not is_projector(found.metadata):
            fix = "Name the file that gguf-convert --mmproj wrote, mmproj-MODEL-TYPE.gguf."
            raise Usage("this is not a projector", where=path, fix=fix)
    return path


def write_modelfile(path: Path, found: Modelfile, *, overwrite: bool = True) -> None:
    """Write it (see `replace_text`). OutputConflict for a file that this program did not write, or may not replace."""
    check_modelfile(path, overwrite=overwrite)
    replace_text(path, found.text)


def check_modelfile(path: Path, *, overwrite: bool = True) -> None:
    """See `write_modelfile`."""
    if path.exists() and not (overwrite and begins(path).startswith(MARK)):
        raise OutputConflict(
            "a Modelfile already exists"
            if not overwrite
            else "a Modelfile that ggufsmith did not write already exists",
            where=path,
            fix="Move it away, or write to another place with --output.",
        )


def _check(file: Path, model: GgufSet, base: Path | None, *, adapter: bool) -> None:
    if len(model.paths) > 1:
        fix = shell_command("ggufsmith", "merge", file)
        raise Unsupported("Ollama takes no model in several files", where=file, fix=fix)
    if not model.tensors:
        raise Usage("this file holds only a vocabulary, which cannot be run", where=file, fix="Name a model.")
    if is_draft(model.metadata, model.tensors):
        what = "this model guesses tokens for a larger one, beside which Ollama does not run it"
        raise Usage(what, where=file, fix="Name the larger model.")
    if base is not None and not adapter:
        raise Usage("--base is about adapters, but this is a model", where=file, fix="Leave out --base.")


def _place(target: Path, modelfile: Path) -> str:
    """How the Modelfile names the target."""
    near = target.absolute().parent == modelfile.absolute().parent
    text = f"./{target.name}" if near else target.absolute().as_posix()
    if not text.isprintable() or '"' in text:
        raise Usage("a Modelfile cannot hold this name", where=target, fix="Rename the file.")
    return text


def _written(metadata: Metadata, lines: list[str], context: int | None) -> Modelfile:
    if is_encoder(metadata):  # which writes nothing: Ollama's `embed` needs no template
        sized = [f"PARAMETER num_ctx {context}"] if context else []
        return Modelfile("\n".join([MARK, *lines, *sized]) + "\n", (), None)
    template = _data(metadata, Keys.Tokenizer.CHAT_TEMPLATE)
    chat = recognised(template) if isinstance(template, str) else None
    notes: tuple[str, ...] = ()
    known = chat is not None and chat.name != PLAIN.name
    body = [MARK, *lines]
    if chat is None:
        body.append(f'TEMPLATE """{COMPLETION}"""')
    elif known:
        body.append(f'TEMPLATE """{go_template(chat, metadata)}"""')
    else:
        notes = (UNKNOWN,)
        body.append(f"# {UNKNOWN}")
    body += [f'PARAMETER stop "{stop}"' for stop in stop_words(chat if known else None, metadata)]
    body += [f"PARAMETER {name} {_number(metadata[key].data)}" for key, name in PARAMETERS.items() if key in metadata]
    body += [f"PARAMETER num_ctx {context}"] if context else []
    return Modelfile("\n".join(body) + "\n", notes, chat.name if chat is not None and known else None)


def go_template(chat: ChatFormat, metadata: Metadata) -> str:
    """The format in Ollama's language. White space counts, so there is none that is not part of the format.

    Ollama puts the vocabulary's first token before everything, if the vocabulary asks for that. Go cannot strip white
    space around messages, as some templates do.
    """

    def text(said: str, later: str = "") -> str:
        return said.replace(BOS, later or bos).replace(EOS, _token(metadata, Keys.Tokenizer.EOS_ID))

    bos = _token(metadata, Keys.Tokenizer.BOS_ID)
    (user, user_end), (answer, answer_end) = chat.turns["user"], chat.turns["assistant"]
    again = f"{{{{ if $later }}}}{bos}{{{{ end }}}}{{{{ $later = true }}}}" if BOS in user else ""
    if _adds_bos(metadata):
        bos = ""
    else:
        again = ""
    joined = "{{ if $system }}" + text(chat.joint[0]) + "{{ $system }}" + text(chat.joint[1])
    joined += '{{ $system = "" }}{{ end }}'
    if "system" in chat.turns:
        first, last = chat.turns["system"]
        system, joined = f"{text(first)}{{{{ .Content }}}}{text(last)}", ""
    else:
        system = "{{ $system = .Content }}"
    return (
        text(chat.begin)
        + ('{{ $system := "" }}' if joined else "")
        + ("{{ $later := false }}" if again else "")
        + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        + f'{{{{ if eq .Role "system" }}}}{system}'
        + f'{{{{ else if eq .Role "user" }}}}{text(user, again)}{joined}{{{{ .Content }}}}{text(user_end)}'
        + f"{{{{ if $last }}}}{text(answer)}{{{{ end }}}}"
        + f'{{{{ else if eq .Role "assistant" }}}}{text(answer)}{{{{ .Content }}}}'
        + f"{{{{ if not $last }}}}{text(answer_end)}{{{{ end }}}}"
        + "{{ end }}{{ end }}"
    )


def _adds_bos(metadata: Metadata) -> bool:
    """Whether programs put the first token before a text; without the key, as llama.cpp does (src/llama-vocab.cpp)."""
    said = _data(metadata, Keys.Tokenizer.ADD_BOS)
    if said is not None:
        return bool(said)
    kind, pre = _data(metadata, Keys.Tokenizer.MODEL), _data(metadata, Keys.Tokenizer.PRE)
    return kind == "llama" or (kind == "gpt2" and pre in BEGINNING)


def stop_words(chat: ChatFormat | None, metadata: Metadata) -> list[str]:
    """Texts that end an answer: those of the vocabulary's last tokens, and what the format puts behind an answer."""
    found = [_token(metadata, key) for key in ENDS]
    if chat is not None:
        behind = chat.turns["assistant"][1].replace(EOS, "").strip()
        found += [behind or chat.turns["user"][0].replace(BOS, "").strip()]
    return list(dict.fromkeys(each for each in found if each.strip() and each.isprintable() and '"' not in each))


def _token(metadata: Metadata, key: str) -> str:
    """The text of a special token; empty if the vocabulary has none."""
    number, tokens = _data(metadata, key), _data(metadata, Keys.Tokenizer.LIST)
    if not isinstance(number, int) or not isinstance(tokens, Sequence) or not 0 <= number < len(tokens):
        return ""
    return str(tokens[number])


def _data(metadata: Metadata, key: str) -> Any:
    value = metadata.get(key)
    return None if value is None else value.data


def _number(value: Any) -> str:
    """A float32 of the header as it was written, and not as a double has it: 0.6."""
    if isinstance(value, int):
        return str(value)
    import numpy as np

    return np.format_float_positional(np.float32(value), trim="-")


def summary_of(found: Modelfile) -> Iterator[tuple[str, str]]:
    """Lines for people."""
    if found.format:
        yield "template", found.format
    for note in found.notes:
        yield "note", note
