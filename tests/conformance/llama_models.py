"""Models opened in llama.cpp through llama-cpp-python."""

from pathlib import Path
from typing import Any

import pytest


def open_llama(path: Path) -> Any:
    """With logits of all positions, and without repacked weights: their code crashes on virtual machines whose CPU
    claims AMX and does not allow it.
    """
    import llama_cpp

    plain = llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", lambda: plain)
        return llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, logits_all=True, verbose=False)
