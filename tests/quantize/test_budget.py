"""The size budget: the knapsack against brute force, sizes that hold, errors that fall, the recipe that comes out."""

import math
import random
import tracemalloc
from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
import small_models as models
from hypothesis import given
from hypothesis import strategies as st

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.formats import BY_NAME
from ggufsmith.pipeline.outputs import OutputFile
from ggufsmith.pipeline.request import Request
from ggufsmith.quantize import budget
from ggufsmith.quantize.budget import Budget, Choice, Solved, budget_of, solve
from ggufsmith.quantize.file_pass import open_file_pass
from ggufsmith.quantize.measured import silently, with_budgets
from ggufsmith.quantize.outputs import QuantizedFile
from ggufsmith.quantize.plan import FilePlan
from requesting import opened, plan, request, run

Q8_0 = BY_NAME["Q8_0"]
ladders = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 1000)), min_size=1, max_size=4), min_size=1, max_size=5
)


def ladder(steps: list[tuple[int, int]]) -> list[Choice]:
    """Choices of growing size and falling error, as `measure` gives them."""
    found: list[Choice] = []
    for size, error in sorted(set(steps)):
        if not found or (size > found[-1].nbytes and error < found[-1].error):
            found.append(Choice(Q8_0, size, float(error)))
    return found


def total(choices: list[list[Choice]], picked: tuple[int, ...] | list[int]) -> tuple[int, float]:
    taken = [each[k] for each, k in zip(choices, picked, strict=True)]
    return sum(choice.nbytes for choice in taken), sum(choice.error for choice in taken)


@given(ladders, st.integers(0, 200), st.sampled_from([1, 500, budget.TABLE]))
def test_the_knapsack_is_solved(steps: list[list[tuple[int, int]]], room: int, table: int) -> None:
    """Also where the table of picks is made in pieces."""
    choices = [ladder(each) for each in steps]
    limit = sum(each[0].nbytes for each in choices) + room
    with patch.object(budget, "TABLE", table):
        size, error = total(choices, solve(choices, limit))
    every = (total(choices, picked) for picked in product(*(range(len(each)) for each in choices)))
    best = min(error for size, error in every if size <= limit)
    assert size <= limit
    assert error == best


@given(ladders, st.integers(0, 10**7))
def test_coarse_units_keep_the_limit_and_waste_nothing(steps: list[list[tuple[int, int]]], room: int) -> None:
    """Sizes without a common divisor, far above the number of units."""
    choices = [[Choice(Q8_0, c.nbytes * 99_991 + k, c.error) for k, c in enumerate(ladder(each))] for each in steps]
    limit = sum(each[0].nbytes for each in choices) + room
    picked = solve(choices, limit)
    size, _ = total(choices, picked)
    assert size <= limit
    for each, k in zip(choices, picked, strict=True):
        assert all(choice.nbytes - each[k].nbytes > limit - size for choice in each[k + 1 :])


def test_what_rounding_leaves_is_spent() -> None:
    """Everything fits, to the byte, but not in whole units."""
    choices = [[Choice(Q8_0, 1, 1.0), Choice(Q8_0, 1 + size, 0.5)] for size in (100_003, 100_019, 100_043, 100_049)]
    assert solve(choices, sum(each[1].nbytes for each in choices)) == [1, 1, 1, 1]
    assert sum(solve(choices, sum(each[1].nbytes for each in choices) - 1)) == 3


def test_the_same_picks_whatever_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    choices = [ladder([(rng.randrange(1, 10**6), rng.randrange(10**6)) for _ in range(6)]) for _ in range(60)]
    limit = sum(each[0].nbytes for each in choices) + 10**7
    whole = solve(choices, limit)
    for table in (1, 10**5, 10**6):
        monkeypatch.setattr(budget, "TABLE", table)
        assert solve(choices, limit) == whole


def test_memory_does_not_grow_with_the_tensors() -> None:
    """Of a hundred thousand tensors, such as experts that are not stacked, the table would have 3.3 GB."""
    few = [[Choice(Q8_0, 32, 3.0), Choice(Q8_0, 32 + 99_991 + k, 1.0)] for k in range(7)]
    choices = few * 1000
    limit = sum(each[0].nbytes for each in choices) + 100_000 * 3500
    tracemalloc.start()
    try:
        picked = solve(choices, limit)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()
    assert sum(picked) in (3499, 3500)


def test_texts() -> None:
    assert budget_of("4.5GiB", None) == Budget(int(4.5 * 2**30))
    assert budget_of("500M", None) == budget_of("500 MB", None) == Budget(500_000_000)
    assert budget_of("123", None) == Budget(123)
    assert budget_of(None, 4.25) == Budget(bits_per_weight=4.25)
    assert budget_of(None, None) is None
    for size, bits in (("4x", None), ("iB", None), ("-1", None), (None, 0.0), (None, 33.0), ("1G", 4.0)):
        with pytest.raises(Usage):
            budget_of(size, bits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64, so that only the few formats of 32-weight blocks are candidates."""
    return models.write_model(tmp_path_factory.mktemp("budget") / "Tiny-1M-F16.gguf")


def solved_for(asked: Request) -> tuple[Request, Solved]:
    """The request with the recipe that fits its budget."""
    found, (solved,) = with_budgets(asked, open_file_pass, silently)
    return found, solved


def plan_of(output: OutputFile) -> FilePlan:
    assert isinstance(output, QuantizedFile)
    return output.plan


def test_files_of_the_size_asked_for(model: Path, tmp_path: Path) -> None:
    errors = []
    for bits in (4.7, 5.5, 6.5, 9.0):
        asked, solved = solved_for(request(model, outdir=tmp_path, target_bpw=(bits,)))
        planned = plan(asked)
        run(planned)
        output = planned.output
        assert output.path.stat().st_size == solved.size == output.size
        assert bits - 0.5 < output.bits_per_weight <= bits
        types = [each.format for each in plan_of(output).assignments]
        errors.append(solved.error)
        (tmp_path / "found.toml").write_text(solved.text, encoding="utf-8")
        with opened(request(model, str(tmp_path / "found.toml"), outdir=tmp_path)) as made:
            again = plan_of(made.outputs[0])
            assert [each.format for each in again.assignments] == types
            assert made.outputs[0].path == output.path
            most = max(
                set(types),
                key=lambda kind: sum(math.prod(e.tensor.shape) for e in again.assignments if e.format is kind),
            )
            assert again.recipe.file_type.base is most
    assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1]


def test_bytes_of_the_whole_file(model: Path, tmp_path: Path) -> None:
    size = model.stat().st_size // 3
    asked, solved = solved_for(request(model, outdir=tmp_path, target_size=(str(size),)))
    assert size * 0.9 < solved.size <= size
    with opened(asked) as made:
        assert made.outputs[0].size == solved.size


def test_the_headers_of_shards_count(model: Path, tmp_path: Path) -> None:
    """A budget that a single file fills leaves shards less for tensors."""
    _, whole = solved_for(request(model, outdir=tmp_path, target_size=(str(model.stat().st_size // 3),)))
    asked, solved = solved_for(request(model, outdir=tmp_path, target_size=(str(whole.size),), split_max_tensors=1))
    planned = plan(asked)
    run(planned)
    assert sum(path.stat().st_size for path in planned.output.paths) == solved.size <= whole.size


def test_the_same_on_any_number_of_threads(model: Path) -> None:
    texts = {solved_for(request(model, threads=threads, target_bpw=(5.3,)))[1].text for threads in (1, 2, 3)}
    assert len(texts) == 1


def test_importance_steers_it(model: Path, tmp_path: Path) -> None:
    imatrix = models.write_imatrix(tmp_path / "i", models.importance(models.arrays(), seed=5))
    _, plain = solved_for(request(model, target_bpw=(5.3,)))
    _, steered = solved_for(request(model, target_bpw=(5.3,), imatrix=imatrix))
    assert steered.error != plain.error


def test_impossible(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match="smallest file possible"):
        solved_for(request(model, target_bpw=(2.0,)))
    values = models.arrays()["blk.0.attn_v.weight"]
    values[:] = float("nan")
    bad = models.write_model(tmp_path / "m-F16.gguf", **{"blk.0.attn_v.weight": models.plain(values)})
    with pytest.raises(Malformed, match=r"blk\.0\.attn_v\.weight"):
        solved_for(request(bad, target_bpw=(6,)))
