"""Sizes as people write them, and names as they mistype them."""

import pytest

from ggufsmith.container.errors import Usage
from ggufsmith.container.text import did_you_mean, nearest
from ggufsmith.container.units import parse_size

SIZES = [
    *(("4G", 4 * 10**9), ("4GB", 4 * 10**9), ("4GiB", 4 * 2**30), ("4gib", 4 * 2**30), ("500M", 5 * 10**8)),
    *(("1.5g", 15 * 10**8), ("1.5GiB", 3 * 2**29), ("20GB", 2 * 10**10), ("123", 123), ("2k", 2000), ("2KiB", 2048)),
    *(("1T", 10**12), ("1TiB", 2**40), ("7B", 7), (" 4 G ", 4 * 10**9), ("4.5 GiB", 9 * 2**29), ("2Ki", 2048)),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-4G", "0", "0.1", "4X", "4iB", "4GiBs", "1e9", "٤G", "9" * 400, "nan", "1.2.3G", "4 G B"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(Usage, match="not a size"):
        parse_size(text)


def test_names_that_are_near() -> None:
    assert nearest("Q4_KM", ["q4_K_M", "q8_0"]) == ["q4_K_M"]
    assert nearest("zzz", ["q4_K_M", "q8_0"]) == []
    assert did_you_mean("recipe", ["recipes", "types"]) == "Did you mean recipes?"
    assert did_you_mean("q4", ["q4_0", "q4_1"], cutoff=0.5) == "Did you mean q4_1 or q4_0?"
    assert did_you_mean("zzz", ["recipes"]) == ""
