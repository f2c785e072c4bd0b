"""The examples do what they say: the workflow's commands are run as a runner would, on fixture checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

import checkpoints

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SMALL = {"intermediate_size": 256, "num_hidden_layers": 1}


@pytest.mark.skipif(os.name == "nt", reason="the workflow is for a Linux runner, with bash")
def test_the_workflow(tmp_path: Path) -> None:
    checkpoints.write("llama", tmp_path / "models" / "Tiny-Llama", **SMALL)
    checkpoints.write("qwen2", tmp_path / "models" / "Tiny-Qwen2", **SMALL)
    shutil.copy(EXAMPLES / "jobs.toml", tmp_path)
    workflow = yaml.safe_load((EXAMPLES / "github-actions.yml").read_text(encoding="utf-8"))
    action = yaml.safe_load((EXAMPLES / "action.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["convert"]
    (used,) = (step["with"] for step in job["steps"] if step["uses"] == "./.github/actions/ggufsmith")
    assert used.keys() <= action["inputs"].keys()
    inputs = {name: str(used.get(name, each["default"])) for name, each in action["inputs"].items()}
    steps = [step for step in action["runs"]["steps"] if "run" in step and step["name"] != "Install"]
    tools = tmp_path / "bin"
    tools.mkdir()
    program = tools / "ggufsmith"  # the program that `pip install ggufsmith` would bring
    program.write_text(f"#!{sys.executable}\nfrom ggufsmith.cli.app import main\nmain()\n", encoding="utf-8")
    program.chmod(0o755)
    environment = {
        **os.environ,
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": str(tmp_path / "said"),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }

    def filled(text: str, part: int) -> str:
        for name, value in inputs.items():
            text = text.replace(f"${{{{ inputs.{name} }}}}", value)
        text = text.replace("${{ matrix.part }}", str(part))
        assert "${{" not in text
        return text

    def run(step: dict[str, Any], part: int) -> list[str]:
        """The status of every model, by the report."""
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env={**environment, **{name: filled(value, part) for name, value in step["env"].items()}},
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "::error" not in done.stdout
        report = tmp_path / f"report-{part}.json"
        content = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {"models": []}
        return [model["status"] for model in content["models"]]

    look, convert = steps
    for part in job["strategy"]["matrix"]["part"]:
        assert run(look, part) == []
        assert run(convert, part) == ["done"]
        for path in (tmp_path / "models").rglob("*"):  # as after a checkout
            os.utime(path)
        assert run(convert, part) == ["finished"]
        assert ElementTree.parse(tmp_path / f"report-{part}.xml").getroot().get("failures") == "0"
    assert (tmp_path / "said").read_text(encoding="utf-8").splitlines()[-1] == "report=report-2.json"
    files = {
        path.relative_to(tmp_path / "gguf").as_posix() for path in (tmp_path / "gguf").rglob("*") if path.is_file()
    }
    assert files == {
        *(f"Tiny-Llama/Tiny-Llama-{kind}.gguf" for kind in ("BF16", "Q4_K_M", "Q6_K", "Q8_0")),
        "Tiny-Qwen2/Tiny-Qwen2-Q8_0.gguf",
        "Tiny-Llama/SHA256SUMS",
        "Tiny-Qwen2/Tiny-Qwen2.sha256",
        *(f"{name}/README.md" for name in ("Tiny-Llama", "Tiny-Qwen2")),
        *(f"{name}/.{name}.batch.json" for name in ("Tiny-Llama", "Tiny-Qwen2")),
    }
    assert "example/Tiny-Llama-GGUF" in (tmp_path / "gguf/Tiny-Llama/README.md").read_text(encoding="utf-8")
