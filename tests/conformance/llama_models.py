"""llama.cpp in this process, through llama-cpp-python: its log, and what models compute in it."""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


@contextmanager
def logged() -> Iterator[list[bytes]]:
    """What llama.cpp and ggml log meanwhile. Whoever took the log before takes it again afterwards: left to a function
    that Python has freed, it would crash whatever logs next.
    """
    import llama_cpp

    pieces: list[bytes] = []

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, data: Any) -> None:
        pieces.append(text)

    before, argument = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(argument))
    llama_cpp.llama_log_set(collect, ctypes.c_void_p())
    try:
        yield pieces
    finally:
        llama_cpp.llama_log_set(before, argument)


def open_llama(path: Path, context: int = 128) -> Any:
    """With logits of all positions, computed in float32.

    Weights are not repacked for AMX: GCC 12 takes _tile_loadconfig to read 8 bytes of the 64, and leaves out what ggml
    stores in the others, so that the processor is configured by what the stack held, and mostly refuses.
    """
    import llama_cpp

    plain = llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: plain)
        return llama_cpp.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            logits_all=True,
            type_k=0,
            type_v=0,
            flash_attn=False,
            verbose=False,
        )


def logits(path: Path, ids: Sequence[int], context: int = 128) -> NDArray[np.float32]:
    """Of every position, (positions, vocabulary)."""
    llama = open_llama(path, context)
    llama.eval(ids)
    found = np.array(llama.scores[: len(ids)], np.float32)
    llama.close()
    return found


def answer_logits(path: Path, ids: Sequence[int], answer: Sequence[int]) -> NDArray[np.float32]:
    """What a model with an encoder, which reads `ids`, makes of every position of `answer`: (positions, vocabulary)."""
    import llama_cpp as llama

    opened = open_llama(path)
    context, size = opened.ctx, opened.n_vocab()
    for run, tokens in ((llama.llama_encode, ids), (llama.llama_decode, answer)):
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for k, token in enumerate(tokens):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = token, k, 1, 1
            batch.seq_id[k][0] = 0
        assert run(context, batch) == 0
        llama.llama_batch_free(batch)
    found = np.array([llama.llama_get_logits_ith(context, k)[:size] for k in range(len(answer))], np.float32)
    opened.close()
    return found


def embeddings(path: Path, ids: Sequence[int], pooling: int) -> NDArray[np.float32]:
    """What llama.cpp makes of these tokens, with this type of pooling (gguf.PoolingType).

    (positions, width) without pooling (0), (width,) with it; with 4, the scores of the classifier.
    """
    import os

    import llama_cpp as llama

    with logged():
        llama.llama_backend_init()
        plain = llama.llama_model_default_params()
        plain.use_extra_bufts = False
        model = llama.llama_model_load_from_file(os.fsencode(path), plain)
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 128
        settings.embeddings, settings.pooling_type = True, pooling
        settings.type_k = settings.type_v = 0
        settings.flash_attn_type = 0
        context = llama.llama_init_from_model(model, settings)
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for k, token in enumerate(ids):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.logits[k] = token, k, 1, 1
            batch.seq_id[k][0] = 0
        apart = llama.llama_model_has_encoder(model)  # as llama-embedding does
        assert (llama.llama_encode if apart else llama.llama_decode)(context, batch) == 0
        width = llama.llama_model_n_cls_out(model) if pooling == 4 else llama.llama_model_n_embd_out(model)
        if pooling == 0:
            rows = [llama.llama_get_embeddings_ith(context, k)[:width] for k in range(len(ids))]
        else:
            rows = llama.llama_get_embeddings_seq(context, 0)[:width]
        found = np.array(rows, np.float32)
        llama.llama_batch_free(batch)
        llama.llama_free(context)
        llama.llama_model_free(model)
    return found
