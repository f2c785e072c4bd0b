"""What commands import: their start is as fast as that."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import write_model

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows

# In the order of how long they take; none of them is needed to quantize a file.
HEAVY = (
    "numba torch transformers huggingface_hub tokenizers sentencepiece pydantic yaml safetensors requests asyncio "
    "gguf.gguf_reader gguf.metadata gguf.vocab markdown_it "
    "ggufsmith.convert.open ggufsmith.evaluate.forward ggufsmith.calibrate ggufsmith.cli.app ggufsmith.cli.batch"
).split()
RUN = """
import json, sys
from pathlib import Path
from ggufsmith.cli.alone import quant_main
before = set(sys.modules)
try:
    quant_main()
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("more", [[], ["--threads", "2"]])
def test_quantizing_imports_nothing_that_it_does_not_need(more: list[str], tmp_path: Path) -> None:
    rows.prepare([(BY_NAME["Q8_0"], BY_NAME["F16"], False), (BY_NAME["Q8_0"], BY_NAME["F32"], False)])
    words = [
        str(write_model(tmp_path / "m.gguf")),
        "--recipe",
        "q8_0",
        "-o",
        str(tmp_path / "q.gguf"),
        "--quiet",
        *more,
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    allowed = {"pydantic", "asyncio"} if more else set()
    assert (set(HEAVY) - allowed) & loaded == set()
    assert (tmp_path / "q.gguf").is_file()


def test_what_is_left_out_is_there_when_it_is_used() -> None:
    """Whoever asks for it in the same process gets the real one, whether before or after."""
    code = (
        "import sys, ggufsmith.cli\n"
        "from rich.markdown import Markdown\n"
        "assert 'markdown_it' not in sys.modules\n"
        "shown = Markdown('*a*')\n"
        "import rich.markdown, gguf, rich.traceback\n"
        "assert type(shown) is rich.markdown.Markdown is not Markdown\n"
        "assert issubclass(rich.markdown.Heading, object) and rich.traceback.install\n"
        "assert gguf.GGUFReader and gguf.quants.Q4_0 and not hasattr(gguf, 'nothing')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
