"""Texts cut into windows of token ids, exactly as llama-imatrix and llama-perplexity cut theirs.

Source: `compute_imatrix` in tools/imatrix/imatrix.cpp and `perplexity` in tools/perplexity/perplexity.cpp of llama.cpp.
A text is tokenized as a whole, with BOS if the vocabulary adds it, and cut into pieces of `context` tokens; what is
left over at the end is dropped. The first token of every piece is replaced by BOS if the vocabulary adds it.

llama.cpp wants two windows at least; here one is enough. Several texts are one stream of tokens: each is tokenized by
itself, with its own BOS, which is what llama.cpp gives for the only text that it takes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.errors import Usage
from ggufsmith.container.text import counted
from ggufsmith.container.untrusted import shown
from ggufsmith.evaluate.texts import TextDocument
from ggufsmith.evaluate.tokenize import Tokenize

ALL = "all"  # the domain of windows that are cut from one stream of all texts


@dataclass(frozen=True)
class Windows:
    """Windows of token ids, with what is to be said of them.

    tokens:  int32, (windows, context).
    domains: of each window.
    names:   what the texts were: file names, each once; with folders only where they tell two domains apart.
    digest:  SHA-256 in hexadecimal of the ids, row by row, as little-endian int32.
    notes:   sentences for the report.
    """

    tokens: NDArray[np.int32]
    domains: tuple[str, ...]
    names: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()


def make_windows(
    documents: Sequence[TextDocument],
    tokenize: Tokenize,
    *,
    context: int,
    chunks: int | None,
    by_domain: bool = True,
    longest: int | None = None,
    shortest: int = 2,
) -> Windows:
    """Tokenize the documents and cut them.

    context:   tokens of a window, at least `shortest`.
    chunks:    how many windows at most, of all; None means all there are. Domains get equal shares of them, as far as
               they have as many.
    by_domain: every domain is a stream of tokens of its own, so that each window belongs to one; otherwise all
               documents are one stream, in their order, as for an importance matrix.
    longest:   tokens of the longest text that the model was made for; longer windows get a note.
    shortest:  tokens that a window needs for its purpose.
    Usage: a stream with fewer tokens than one window, fewer chunks than domains, a context below `shortest`.
    """
    if context < shortest:
        what = f"a window needs at least {shortest} tokens, not {context}"
        raise Usage(what, where="--context", fix=f"Choose {shortest} or more.")
    streams: dict[str, list[NDArray[np.int32]]] = {}
    for document in documents:
        ids = tokenize.chat(document.messages) if document.messages else tokenize(document.text)
        streams.setdefault(document.domain if by_domain else ALL, []).append(ids)
    counts = {domain: sum(map(len, parts)) for domain, parts in streams.items()}
    _check_lengths(documents, counts, context, shortest)
    shares = _shares({domain: count // context for domain, count in counts.items()}, chunks)
    rows = [_cut(parts, context, shares[domain], tokenize.bos) for domain, parts in streams.items()]
    tokens = np.concatenate(rows)
    names = [document.name for document in documents]
    chats = any(document.messages for document in documents)
    notes = tokenize.chat_notes if chats else ()
    if longest is not None and context > longest:
        notes = (*notes, f"windows of {context} tokens are longer than the {longest} that the model was made for")
    return Windows(
        tokens=tokens,
        domains=tuple(domain for domain, share in shares.items() for _ in range(share)),
        names=tuple(dict.fromkeys(names if by_domain else (name.rpartition("/")[2] for name in names))),
        digest=hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest(),
        notes=notes,
    )


def _check_lengths(documents: Sequence[TextDocument], counts: dict[str, int], context: int, shortest: int) -> None:
    """Usage for each stream that is shorter than a window."""
    if not documents:
        raise Usage("there is no text", fix="Pass files or folders with --text.")
    short = {domain: count for domain, count in counts.items() if count < context}
    if not short:
        return
    named = [
        f"the text{'' if domain == ALL else f' of {shown(domain)}'} has {counted(count, 'token')}, but one window has "
        f"{context}"
        for domain, count in short.items()
    ]
    least = min(short.values())
    smaller = f", or --context {least} or less to eval or imatrix" if least >= shortest else ""
    raise Usage(named[0], where="--text", fix=f"Pass more text{smaller}.", also=named[1:])


def _shares(counts: dict[str, int], chunks: int | None) -> dict[str, int]:
    """How many windows each stream gives: all it has, or a fair share of `chunks`, the first streams one more."""
    if chunks is None or sum(counts.values()) <= chunks:
        return counts
    if chunks < len(counts):
        raise Usage(
            f"{chunks} is fewer than the {len(counts)} texts that are measured separately",
            where="--chunks",
            fix=f"Pass --chunks {len(counts)} or more.",
        )
    shares = dict.fromkeys(counts, 0)
    while chunks:
        for domain in counts:
            if chunks and shares[domain] < counts[domain]:
                shares[domain] += 1
                chunks -= 1
    return shares


def _cut(parts: Sequence[NDArray[np.int32]], context: int, share: int, bos: int | None) -> NDArray[np.int32]:
    """The first `share` windows of a stream, (share, context)."""
    windows = np.concatenate(parts)[: share * context].reshape(share, context).copy()
    if bos is not None:
        windows[:, 0] = bos
    return windows
