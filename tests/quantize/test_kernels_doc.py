"""docs/kernels.md quotes the sources as they are."""

import re
from pathlib import Path

from ggufsmith.quantize import simd
from ggufsmith.quantize.kernels import blocks

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_code_is_quoted_from_the_sources() -> None:
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "quantize").rglob("*.py"))]
    quoted = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(quoted) >= 8
    for block in quoted:
        assert any(f"\n{block}" in source for source in sources), f"not in quantize/:\n{block}"


def test_words_and_files_exist() -> None:
    table = TEXT.split("| word | meaning |")[1].split("\n\n")[0]
    for name in re.findall(r"\b([a-z_0-9]+)\b(?=\(|`)", " ".join(re.findall(r"`[^`]*`(?=.*\|)", table))):
        assert hasattr(simd, name) or hasattr(blocks, name) or name in ("np", "where", "nearest_int", "roundf"), name
    for path in re.findall(r"`((?:quantize|tests|container|docs)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
