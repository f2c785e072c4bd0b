"""The JSON report of a job: a dry run, the run and the next one print what docs/batch-report.schema.json describes."""

import json
from pathlib import Path
from typing import Any

import pytest
from schemas import faults
from typer.testing import CliRunner

import checkpoints
from ggufsmith.cli.app import app
from ggufsmith.cli.batch_report import JobReport
from ggufsmith.report import SCHEMA, OutputReport, json_schema

DOCUMENT = Path(__file__).parents[2] / "docs" / "batch-report.schema.json"
JOB = """output = 'out'
[defaults]
outtypes = 'f16'
recipes = 'q8_0'
[[model]]
source = 'good'
[[model]]
source = 'bad'
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of a model, and of one whose config is damaged."""
    home = tmp_path_factory.mktemp("m")
    checkpoints.write("llama", home / "good")
    (home / "bad").mkdir()
    (home / "bad" / "config.json").write_text("{", encoding="utf-8")
    (home / "jobs.toml").write_text(JOB, encoding="utf-8")
    return home


def report_of(home: Path, *more: str) -> Any:
    done = CliRunner().invoke(app, ["batch", str(home / "jobs.toml"), "--json", "--no-sync", *more])
    assert done.exit_code == 101, done.output
    report = json.loads(done.stdout)
    assert list(faults(report, json_schema(JobReport))) == []
    assert (report["schema"], report["exit_code"]) == (SCHEMA, 101)
    return report


def test_a_job(home: Path) -> None:
    dry, done, again = report_of(home, "--dry-run"), report_of(home, "--report", str(home / "r.json")), report_of(home)
    assert json.loads((home / "r.json").read_text(encoding="utf-8")) == done
    assert (dry["dry_run"], done["dry_run"]) == (True, False)
    assert dry["bytes"] == done["bytes"] == sum(path.stat().st_size for path in (home / "out").rglob("*.gguf"))
    assert again["bytes"] == 0
    models = [{model["name"]: model for model in report["models"]} for report in (dry, done, again)]
    assert [model["good"]["status"] for model in models] == ["to make", "done", "finished"]
    for model in models:
        assert model["bad"]["status"] == "failed" and model["bad"]["error"]["code"] == 4
    assert models[0]["good"]["input"] == [str(home / "good")]
    for planned, made in zip(models[0]["good"]["outputs"], models[1]["good"]["outputs"], strict=True):
        assert "files" not in planned and (planned.pop("status"), made.pop("status")) == ("to make", "done")
        files = made.pop("files")
        assert planned == made and Path(made["output"][0]).stat().st_size == made["bytes"] == files[0]["bytes"]
        assert len(files[0]["sha256"]) == 64 and made["tensor_count"] == sum(made["types"].values()) > 0


def test_outputs_are_those_of_a_run() -> None:
    """What reads the one can read the other."""
    run = json_schema(OutputReport)["properties"]
    job = json_schema(JobReport)["properties"]["models"]["items"]["properties"]["outputs"]["items"]["properties"]
    assert run.items() <= job.items() and job.keys() - run.keys() == {"status"}


def test_the_document_is_this_schema() -> None:
    assert json.loads(DOCUMENT.read_text(encoding="utf-8")) == json_schema(
        JobReport, "ggufsmith batch report, schema 2"
    )
