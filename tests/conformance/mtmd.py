"""llama.cpp's libmtmd in this process: what it makes of an image, or of sound, with a projector and its text model."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llama_models import logged
from numpy.typing import NDArray

from needed import need

IMAGE, AUDIO = 1, 2  # kinds of chunks


@contextmanager
def opened(model: Path, projector: Path, max_tokens: int | None) -> Iterator[tuple[Any, int]]:
    """The context, which computes in float32 on the CPU, and the length of an embedding."""
    import llama_cpp
    from llama_cpp import mtmd_cpp

    plain = llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = False  # see `llama_models.open_llama`
    text = llama_cpp.llama_model_load_from_file(str(model).encode(), plain)
    assert text, f"llama.cpp does not load {model}"
    settings = mtmd_cpp.mtmd_context_params_default()
    settings.use_gpu = settings.print_timings = settings.warmup = False
    settings.n_threads, settings.flash_attn_type = 1, 0
    if max_tokens is not None:
        settings.image_max_tokens = max_tokens
    context = mtmd_cpp.mtmd_init_from_file(str(projector).encode(), text, settings)
    assert context, f"libmtmd does not load {projector}"
    try:
        yield context, llama_cpp.llama_model_n_embd_inp(text)
    finally:
        mtmd_cpp.mtmd_free(context)
        llama_cpp.llama_model_free(text)


def embeddings(
    model: Path, projector: Path, media: NDArray[Any], *, max_tokens: int | None = None
) -> NDArray[np.float32]:
    """(tokens, length) of an image, (height, width, 3) of uint8, or of sound, (samples,) of float32.

    max_tokens: to which larger images are scaled down.
    """
    need("mtmd")
    from llama_cpp import mtmd_cpp

    media = np.ascontiguousarray(media)
    with logged() as said, opened(model, projector, max_tokens) as (context, length):
        if media.ndim == 3:
            height, width, _ = media.shape
            pixels = media.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            bitmap = mtmd_cpp.mtmd_bitmap_init(width, height, pixels)
        else:
            bitmap = mtmd_cpp.mtmd_bitmap_init_from_audio(
                len(media), media.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            )
        prompt = mtmd_cpp.mtmd_input_text()
        prompt.text = mtmd_cpp.mtmd_default_marker()
        prompt.text_len = len(prompt.text)
        prompt.add_special = prompt.parse_special = False
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        bitmaps = (mtmd_cpp.mtmd_bitmap_p_ctypes * 1)(bitmap)
        failed = mtmd_cpp.mtmd_tokenize(context, chunks, ctypes.byref(prompt), bitmaps, 1)
        assert not failed, b"".join(said).decode("utf-8", "replace")
        found = []
        for index in range(mtmd_cpp.mtmd_input_chunks_size(chunks)):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, index)
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) in (IMAGE, AUDIO):
                tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(chunk)
                assert not mtmd_cpp.mtmd_encode_chunk(context, chunk), b"".join(said).decode("utf-8", "replace")
                values = np.ctypeslib.as_array(mtmd_cpp.mtmd_get_output_embd(context), shape=(tokens, length))
                found.append(values.copy())
        mtmd_cpp.mtmd_input_chunks_free(chunks)
        mtmd_cpp.mtmd_bitmap_free(bitmap)
    return np.concatenate(found)
