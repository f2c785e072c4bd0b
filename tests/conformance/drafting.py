"""llama.cpp's drafting: what a small model guesses beside a larger one, as common/speculative.cpp runs the two.

Of the functions that these programs use, some are not in llama.h but in src/llama-ext.h, with C++'s names.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llama_models import logged
from numpy.typing import NDArray

STATES, STATES_OF, INPUTS, INPUTS_OF = (
    "_Z26llama_set_embeddings_nextnP13llama_contextbb",
    "_Z30llama_get_embeddings_nextn_ithP13llama_contexti",
    "_Z30llama_set_embeddings_layer_inpP13llama_contextjb",
    "_Z30llama_get_embeddings_layer_inpP13llama_contextj",
)
Vector = NDArray[np.float32]


@contextmanager
def opened(path: Path, other: Any = None, **settings: int) -> Iterator[tuple[Any, Any]]:
    """A model and a context in float32, which takes what it lacks from the other context."""
    import llama_cpp as llama

    with logged() as said:
        llama.llama_backend_init()
        plain = llama.llama_model_default_params()
        plain.use_extra_bufts, plain.load_mtp = False, True
        model = llama.llama_model_load_from_file(os.fsencode(path), plain)
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}: {b''.join(said)[-2000:]!r}")
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = 128
        params.type_k = params.type_v = 0
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = 0
        params.ctx_other = other
        for name, value in settings.items():
            setattr(params, name, value)
        context = llama.llama_init_from_model(model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {path}: {b''.join(said)[-2000:]!r}")
        try:
            yield model, context
        finally:
            llama.llama_free(context)
            llama.llama_model_free(model)


def keep_states(context: Any, masked: bool) -> None:
    """Have a context keep the hidden states that drafting begins with: of all tokens, or of those with logits."""
    function = getattr(_library(), STATES)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool], None
    function(context, True, masked)


def states_of(context: Any, row: int, width: int) -> Vector:
    """The state of a token."""
    function = getattr(_library(), STATES_OF)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int32], ctypes.POINTER(ctypes.c_float)
    return np.array(function(context, row)[:width], np.float32)


def keep_inputs(context: Any, layers: Sequence[int]) -> None:
    """Have a context keep what goes into these layers."""
    function = getattr(_library(), INPUTS)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_bool], None
    for layer in layers:
        function(context, layer, True)


def inputs_of(context: Any, layers: Sequence[int], rows: int, width: int) -> Vector:
    """These inputs beside each other: (rows, layers * width)."""
    function = getattr(_library(), INPUTS_OF)
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_uint32], ctypes.POINTER(ctypes.c_float)
    found = [np.array(function(context, layer)[: rows * width], np.float32).reshape(rows, width) for layer in layers]
    return np.concatenate(found, 1)


def decode(
    context: Any, ids: Sequence[int], first: int = 0, states: Sequence[Vector] | Vector = (), *, encode: bool = False
) -> None:
    """Run these tokens from position `first` on, each with its state, if there are any. Logits of all are kept.

    Without tokens, the states alone.
    """
    import llama_cpp as llama

    batch, kept = llama.llama_batch_ext_init(context), [np.ascontiguousarray(state, np.float32) for state in states]
    given = [llama.llama_embd(s.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), 1, s.size) for s in kept]
    for k in range(len(ids) or len(given)):
        if len(ids):
            row = llama.llama_batch_ext_add_token(batch, 0, ids[k])
        else:
            row = llama.llama_batch_ext_add_embd(batch, 0, given[k])
        position = (ctypes.c_int32 * 4)(first + k, first + k, first + k, 0)
        assert row == k and llama.llama_batch_ext_set_pos(batch, row, position)
        if len(ids) and given:
            assert llama.llama_batch_ext_set_embd_token(batch, row, given[k])
        assert llama.llama_batch_ext_set_output_logits(batch, row, True)
    assert llama.llama_process(context, 0 if encode else 1, batch) == 0
    llama.llama_batch_ext_free(batch)


def attend_both_ways(context: Any) -> None:
    """Let every token of a batch see all others."""
    import llama_cpp as llama

    llama.llama_set_causal_attn(context, False)


def forget(context: Any, first: int) -> None:
    """Forget the tokens from this position on."""
    import llama_cpp as llama

    assert llama.llama_memory_seq_rm(llama.llama_get_memory(context), 0, first, -1)


def logits_of(context: Any, row: int, size: int) -> Vector:
    """The logits of a token."""
    import llama_cpp as llama

    return np.array(llama.llama_get_logits_ith(context, row)[:size], np.float32)


def _library() -> Any:
    import llama_cpp.llama_cpp as llama

    return llama._lib
