"""For the tests of this folder."""

from pathlib import Path

import pytest

import checkpoints


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: checkpoints.write(kind, folder / f"Base-{kind}") for kind in ("llama", "qwen2", "mixtral", "gemma2")}
