"""Kernels compiled against the same source run on NumPy arrays."""

import pytest

from twins import assert_decodes_as_twin, assert_encodes_as_twin

SEARCHED = "Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
NAMES = (*SEARCHED, "Q8_0", "Q1_0", "Q2_0", "Q8_K")


@pytest.mark.parametrize("name", NAMES)
def test_encoding(name: str) -> None:
    assert_encodes_as_twin(name, False)


@pytest.mark.parametrize("name", SEARCHED)
def test_weighted_search(name: str) -> None:
    assert_encodes_as_twin(name, True)


@pytest.mark.parametrize("name", NAMES)
def test_decoding(name: str) -> None:
    assert_decodes_as_twin(name)
