"""Pictures: the same bytes every time, whatever the names of the files."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_judged import files

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.evaluate.judged import Judged
from ggufsmith.evaluate.plot import check_plot, picture

DRAW = """
import sys
sys.path.insert(0, {folder!r})
from test_plot import some
from ggufsmith.evaluate.plot import picture
sys.stdout.buffer.write(picture(some(), title="T", suffix={suffix!r}))
"""


def some() -> list[Judged]:
    plain = files(("M-Q8_0.gguf", 300, 0.001), ("M-Q4_0.gguf", 120, 0.1), ("M-F32.gguf", 900, 0.0))
    other = files(("M-<b>$x_$.gguf", 130, 0.08), group="recipes & more")
    return [*plain, *other]


@pytest.mark.parametrize("suffix", [".svg", ".html", ".png"])
def test_the_same_rows_give_the_same_bytes_in_another_process(suffix: str) -> None:
    code = DRAW.format(folder=str(Path(__file__).parent), suffix=suffix)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == picture(some(), title="T", suffix=suffix)


def test_an_svg_is_well_formed_and_a_page_needs_nothing_else() -> None:
    ElementTree.fromstring(picture(some(), title="<T> & $1_0$", suffix=".svg"))
    text = picture(some(), title="<script>", suffix=".HTML").decode()
    assert "<svg" in text and "<script>" not in text
    assert "src=" not in text and "@import" not in text


def test_what_cannot_be_drawn_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("x.pdf", "x"):
        with pytest.raises(Usage, match=r"\.svg"):
            check_plot(Path(name))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unsupported, match="pip install"):
        check_plot(Path("x.svg"))
