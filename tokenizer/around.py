"""Which tokens are put around a text, from the `post_processor` of tokenizer.json.

`tokenizers` documentation, "Post-processors". transformers (5.24) follows it alone where there is a tokenizer.json, and
the flags of tokenizer_config.json (`add_bos_token`, `add_eos_token`) where there is none. llama.cpp adds one BOS before
and one EOS behind a text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufsmith.container.untrusted import Json, child, expect, shown

BERT_LIKE = {"RobertaProcessing": 2, "BertProcessing": 1}  # separators between two texts


@dataclass(frozen=True)
class TextFrame:
    """The special tokens before one text, behind it, and between two; None stands for anything but a special token."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    between: tuple[str | None, ...] = ()

    @property
    def first(self) -> str | None:
        """The token that a text begins with."""
        return self.before[0] if self.before else None

    @property
    def last(self) -> str | None:
        """The token that a text ends with."""
        return self.after[-1] if self.after else None


def read_frame(tokenizer: Json, where: Path) -> TextFrame:
    """What a tokenizer.json puts around texts; empty if it has no post-processor that does. Malformed if damaged."""
    top = child(tokenizer, "post_processor", dict, where=where)
    if not top:
        return TextFrame()
    nested = child(top, "processors", list, where=where, path="post_processor.")
    for step in [top] if nested is None else nested:
        kind = expect(step, dict, where=where, key="post_processor.processors").get("type")
        if kind == "TemplateProcessing":
            return _of_template(step, where)
        if isinstance(kind, str) and kind in BERT_LIKE:
            first, last = (_token(step.get(key), where, f"post_processor.{key}") for key in ("cls", "sep"))
            return TextFrame((first,), (last,), (last,) * BERT_LIKE[kind])
    return TextFrame()


def _of_template(step: Json, where: Path) -> TextFrame:
    single, pair = (_pieces(step, key, where) for key in ("single", "pair"))
    texts = [at for at, (sequence, _) in enumerate(single) if sequence is not None]
    start, stop = (texts[0], texts[-1] + 1) if texts else (0, 0)
    before, after = (tuple(text for _, text in part if text) for part in (single[:start], single[stop:]))
    frame = TextFrame(before, after)
    inner = pair[1 if frame.first and pair and pair[0][1] == frame.first else 0 :]
    inner = inner[: -1 if frame.last and inner and inner[-1][1] == frame.last else None]
    whole = len(inner) > 2 and (inner[0][0], inner[-1][0]) == ("A", "B")
    return TextFrame(before, after, tuple(text for _, text in inner[1:-1]) if whole else ())


def _pieces(step: Json, key: str, where: Path) -> list[tuple[str | None, str | None]]:
    """The parts of a template as (sequence, None) or (None, special token)."""
    path = f"post_processor.{key}"
    result: list[tuple[str | None, str | None]] = []
    for piece in child(step, key, list, where=where, path="post_processor.") or []:
        expect(piece, dict, where=where, key=path)
        inner = [child(piece, kind, dict, where=where, path=f"{path}.") or {} for kind in ("Sequence", "SpecialToken")]
        a, b = (child(part, "id", str, where=where, path=f"{path}.") for part in inner)
        result.append((a, b))
    return result


def _token(value: Any, where: Path, key: str) -> str:
    """The text of a [text, id] pair."""
    pair = expect(value, list, where=where, key=key)
    return str(expect(pair[0] if pair else None, str, where=where, key=f"{key}[0]"))


def beyond_one(frame: TextFrame) -> list[str]:
    """Notes on tokens of the frame that llama.cpp has no place for."""
    return [
        f"tokenizer.json puts {', '.join(map(shown, tokens))} {place} every text; llama.cpp can add only one token "
        f"there"
        for tokens, place in ((frame.before, "before"), (frame.after, "behind"))
        if len(tokens) > 1
    ]
