"""What has no end, or waits for one, is neither read as a document nor as the file that an output would replace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_models as models

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has neither FIFOs in folders nor /dev/zero")
MAIN = "from ggufsmith.cli.app import main; main()"
# In 2 GiB of address space, so that a read without a limit ends soon.
CODE = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30,) * 2); {MAIN}"

DOCUMENTS = [
    "batch ENDLESS",
    "quant g.gguf -r ENDLESS.toml",
    "quant g.gguf -r extends.toml",
    "quant g.gguf -r q4_0 --tensor-type-file ENDLESS",
    "quant g.gguf --target-size 2M --sensitivity ENDLESS",
    "card g.gguf --card-template ENDLESS",
    "verify g.gguf --record ENDLESS",
]
OUTPUTS = ["modelfile g.gguf -o ENDLESS", "card g.gguf -o ENDLESS"]


@pytest.mark.parametrize("kind", ["zero", "fifo"])
@pytest.mark.parametrize("words", [*DOCUMENTS, *OUTPUTS])
def test_it_is_one_error(tmp_path: Path, words: str, kind: str) -> None:
    models.write_model(tmp_path / "g.gguf")
    (tmp_path / "extends.toml").write_text('extends = "ENDLESS.toml"\n', encoding="utf-8")
    for name in ("ENDLESS", "ENDLESS.toml"):
        if kind == "zero":
            (tmp_path / name).symlink_to("/dev/zero")
        else:
            os.mkfifo(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode in ((2,) if words in OUTPUTS else (1, 2, 4)), done.stderr
    assert done.stderr.startswith("error: ") and "internal error" not in done.stderr, done.stderr
    assert "not a regular file" in done.stderr or "there is no such" in done.stderr
    assert sorted(tmp_path.iterdir()) == before
