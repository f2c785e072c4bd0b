"""The size of the cache against what llama.cpp allocates: every architecture that it loads here, several contexts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from ggufsmith.container.shards import open_gguf_set
from ggufsmith.kvcache import cache_bytes, cache_type
from requesting import request
from requesting import run as convert

pytestmark = pytest.mark.conformance

CONTEXTS = (256, 1024, 4096)
# Prints what llama.cpp logs of its caches, for each context.
LOADER = """
import sys, llama_cpp
for context in sys.argv[2:]:
    print("CONTEXT", context, file=sys.stderr, flush=True)
    options = dict(n_batch=512, n_ubatch=512, swa_full=False, flash_attn=True, n_threads=1)
    llm = llama_cpp.Llama(sys.argv[1], n_ctx=int(context), **options)
    llm.close()
"""


SIZES = r"(?:llama_kv_cache|llama_memory_recurrent): +size = +([\d.]+) MiB"


def allocated(file: Path, sizes: str = SIZES) -> list[float]:
    """MiB of all caches that llama.cpp allocates, for each context. sizes: how the log says them."""
    words = [sys.executable, "-c", LOADER, str(file), *map(str, CONTEXTS)]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode:
        pytest.fail(done.stderr[-2000:])
    runs = done.stderr.split("CONTEXT ")[1:]
    return [sum(map(float, re.findall(sizes, run))) for run in runs]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_cache_is_as_large_as_that_of_llama_cpp(name: str, tmp_path: Path) -> None:
    zoo.write(name, tmp_path / name)
    convert(request(tmp_path / name, outfile=tmp_path / "m.gguf"))
    with open_gguf_set(tmp_path / "m.gguf") as model:
        ours = [cache_bytes(model.metadata, context, cache_type("f16")) / 2**20 for context in CONTEXTS]
    theirs = allocated(tmp_path / "m.gguf")
    assert theirs == pytest.approx(ours, abs=0.011), name  # it prints two decimals of each cache
