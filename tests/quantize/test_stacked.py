"""Files of early 2024 with a tensor for each expert: they are the stacked ones, or an error."""

from pathlib import Path

import numpy as np
import pytest
import small_models as models
from numpy.typing import NDArray

from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.container.formats import BY_NAME, Format
from ggufsmith.container.layout import TensorSpec, lay_out
from ggufsmith.container.shards import Limits, SetWriter, plan_shards
from ggufsmith.container.values import u32
from ggufsmith.quantize.source import open_model
from requesting import plan, request, run

EXPERTS = 3
Tensors = dict[str, tuple[Format, NDArray[np.uint8]]]


def tensors(*, apart: bool, format: Format = models.F16) -> Tensors:
    """The model of `small_models`, its stacks as they are or taken apart."""
    found: Tensors = {}
    for name, values in models.arrays().items():
        if apart and "_exps" in name:
            for expert, matrix in enumerate(values):
                found[name.replace("_exps", f".{expert}")] = models.plain(matrix, format)
        else:
            found[name] = models.plain(values, format if values.ndim > 1 else models.F32)
    return found


def write(path: Path, found: Tensors, count: int | None = EXPERTS) -> Path:
    more = {} if count is None else {"llama.expert_count": u32(count)}
    return models.write_gguf(path, {**models.metadata(), **more}, found)


def shards(folder: Path, found: Tensors, count: int) -> Path:
    """The same in several files; returns the first."""
    specs = [
        TensorSpec(name, (*data.shape[:-1], data.shape[-1] // f.size * f.weights), f)
        for name, (f, data) in found.items()
    ]
    layout = lay_out({**models.metadata(), "llama.expert_count": u32(EXPERTS)}, specs)
    plan = plan_shards(layout, Limits(max_tensors=-(-len(specs) // count)).counts(specs, layout.alignment))
    with SetWriter(folder / "m.gguf", plan, sync=False) as writer:
        for offset, (_, data) in zip(plan.whole.offsets, found.values(), strict=True):
            writer.write(offset, data.reshape(-1))
        writer.commit()
    return plan.paths(folder / "m.gguf")[0]


def made(source: Path, output: Path, recipe: str, **options: object) -> bytes:
    planned = plan(request(source, recipe, outfile=output, **options))
    run(planned)
    made = planned.output
    return b"".join(path.read_bytes() for path in made.shards.paths(made.path))


@pytest.mark.parametrize("recipe", ["q8_0", "q4_K_M", "bf16", "copy"])
@pytest.mark.parametrize("order", [1, -1])
def test_the_same_bytes_as_from_stacks(tmp_path: Path, recipe: str, order: int) -> None:
    stacked = write(tmp_path / "new.gguf", tensors(apart=False))
    apart = write(tmp_path / "old.gguf", dict(list(tensors(apart=True).items())[::order]))
    ours = made(apart, tmp_path / "a.gguf", recipe)
    assert ours == made(stacked, tmp_path / "b.gguf", recipe)


def test_over_several_files(tmp_path: Path) -> None:
    first = shards(tmp_path, tensors(apart=True), 4)
    stacked = write(tmp_path / "new.gguf", tensors(apart=False))
    assert made(first, tmp_path / "a.gguf", "q8_0") == made(stacked, tmp_path / "b.gguf", "q8_0")
    made(first, tmp_path / "kept.gguf", "q8_0", keep_split=True)
    with open_model(next(tmp_path.glob("kept-00001-of-*.gguf"))).files as again, open_model(stacked).files as whole:
        assert set(again.tensors) == set(whole.tensors)


def test_parts_of_a_stack(tmp_path: Path) -> None:
    model = open_model(write(tmp_path / "old.gguf", tensors(apart=True)))
    name = "blk.1.ffn_up_exps.weight"
    expected = models.plain(models.arrays()[name], models.F16)[1].tobytes()
    with model.files as files:
        info = files.tensors[name]
        assert (info.shape, info.nbytes) == ((3, 64, 64), len(expected))
        for start, stop in ((0, len(expected)), (100, 20000), (8191, 8193), (len(expected) - 1, len(expected))):
            buffer = bytearray(stop - start)
            files.read_into(info, start, buffer)
            assert bytes(buffer) == expected[start:stop]
    assert model.told() == ("6 matrices of single experts are stacked into 2, as llama.cpp now expects them",)


def refused(path: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        open_model(path)
    return caught.value


def test_what_cannot_be_stacked(tmp_path: Path) -> None:
    whole = tensors(apart=True)
    gone = {name: data for name, data in whole.items() if name != "blk.1.ffn_up.2.weight"}
    both = {**whole, "blk.0.ffn_up_exps.weight": tensors(apart=False)["blk.0.ffn_up_exps.weight"]}
    small = {**whole, "blk.0.ffn_up.1.weight": models.plain(np.zeros((32, 64), np.float32), models.F16)}
    mixed = {**whole, "blk.0.ffn_up.1.weight": models.plain(np.zeros((64, 64), np.float32), BY_NAME["F32"])}
    for found, count, kind, message in (
        (gone, EXPERTS, Malformed, "2 experts of 3"),
        (whole, 4, Malformed, "3 experts of 4"),
        (whole, 2, Malformed, "3 experts of 2"),
        (whole, None, Malformed, "does not say how many"),
        (whole, 0, Malformed, "does not say how many"),
        (both, EXPERTS, Malformed, "the stack exists as well"),
        (small, EXPERTS, Malformed, "different shapes"),
        (mixed, EXPERTS, Unsupported, "different types"),
    ):
        failure = refused(write(tmp_path / "x.gguf", found, count))
        assert isinstance(failure, kind), message
        assert message in str(failure)
        assert failure.fix
