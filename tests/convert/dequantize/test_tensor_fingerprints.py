"""What decides a tensor's rows shows in its fingerprint: every field of every scheme, step and op."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import test_sources_layouts as layouts
import test_sources_more_layouts as more

import adapters
import checkpoints
import sourced
from ggufsmith.container.fingerprint import fingerprint
from ggufsmith.container.formats import BY_NAME
from ggufsmith.convert.dequantize.scheme import DequantizedTensor
from ggufsmith.convert.lora.export import plan_adapter
from ggufsmith.convert.lora.merge import merge
from ggufsmith.convert.lora.peft import open_adapter
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.original import Joined
from ggufsmith.convert.plan import make_plan
from ggufsmith.convert.stored import StoredTensor
from ggufsmith.convert.tensors import tensors_of
from merging import opened

NVFP4 = {"quantization_config": more.COMPRESSED}
MLX = {"quantization": {"bits": 4, "group_size": 64}}


def of_scheme(name: str, folder: Path) -> DequantizedTensor:
    if name in layouts.samples():
        layouts.folder_of(folder, *layouts.samples()[name])
    elif name == "nvfp4":
        more.folder_of(folder, more.nvfp4("compressed")[0], **NVFP4)
    else:
        more.folder_of(folder, more.mlx(32, 128, 4, 64)[0], **MLX)
    (found,) = sourced.recognised(folder).tensors.values()
    assert isinstance(found, DequantizedTensor)
    return found


def changed(value: Any) -> Iterator[tuple[str, Any]]:
    """The value with one thing in it changed, in every way; and what that is."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for where, other in changed(getattr(value, field.name)):
                yield f"{type(value).__name__}.{field.name} {where}", replace(value, **{field.name: other})
    elif isinstance(value, tuple) and value:
        yield "length", value[:-1]
        for k, each in enumerate(value[:4]):
            for where, other in changed(each):
                yield f"{k} {where}", (*value[:k], other, *value[k + 1 :])
    elif isinstance(value, bool):
        yield "bool", not value
    elif isinstance(value, int | float):
        yield "number", value + 1
    elif isinstance(value, str):
        yield "text", value + "x"
    elif isinstance(value, Path):
        yield "file", value.with_name("other")
    elif value is None:
        yield "there", StoredTensor("y", (1,), "F32", Path("y"), 0, 4)


def check(value: Any, print_of: Callable[[Any], bytes] = fingerprint) -> list[str]:
    """Every change shows. What was changed."""
    first, found = print_of(value), []
    for where, other in changed(value):
        assert print_of(other) != first, f"{where} does not show"
        found.append(where)
    assert print_of(value) == first
    return found


@pytest.mark.parametrize("name", [*layouts.samples(), "nvfp4", "mlx"])
def test_every_field_of_a_scheme(tmp_path: Path, name: str) -> None:
    source = of_scheme(name, tmp_path)
    found = check(source)
    for field in fields(source.weights):  # type: ignore[arg-type]
        assert any(f".{field.name} " in where for where in found), field.name


def test_every_field_of_a_merge(tmp_path: Path) -> None:
    base = checkpoints.write("llama", tmp_path / "base")
    for name, options in (("a", {"use_dora": True}), ("b", {"targets": ("embed_tokens",)})):
        adapters.write(base, tmp_path / name, **options)
    found = [(open_adapter(tmp_path / name), 0.5) for name in "ab"]
    checkpoint, touched = merge(opened(base), found)
    assert len(touched) == 5
    for name in touched:
        where = " ".join(check(checkpoint.tensors[name]))
        assert all(field in where for field in ("LowRank.scale", "Update.scale", "LowRank.turned", "Update.magnitude"))


def test_the_factors_of_an_adapter(tmp_path: Path) -> None:
    """One after the other, a factor and its alpha give the same product; the plans differ by nothing else."""
    base = checkpoints.write("llama", tmp_path / "base")
    prints = set()
    for alpha in (12, 13):
        adapters.write(base, tmp_path / "a", alpha_pattern={"q_proj": alpha})
        plan = plan_adapter(open_adapter(tmp_path / "a"), base, open_config(base))
        prints.add(fingerprint(plan.outputs))
    assert len(prints) == 2


def test_every_field_of_a_plan(tmp_path: Path) -> None:
    for kind in ("llama", "gemma2", "qwen3-moe"):
        folder = checkpoints.write(kind, tmp_path / kind)
        checkpoint = opened(folder)
        plan = make_plan(open_config(folder), checkpoint.tensors)
        prints = {tensor.fingerprint for tensor in tensors_of(checkpoint, plan.outputs)}
        assert len(prints) == len(plan.outputs)
        for output in plan.outputs[:12]:
            (tensor,) = tensors_of(checkpoint, [output])
            check(output, lambda output, tensor=tensor: replace(tensor, output=output).fingerprint)
            assert replace(tensor, exact=BY_NAME["Q4_0"]).fingerprint != tensor.fingerprint


def test_parts_of_the_original_release() -> None:
    parts = tuple(StoredTensor("x", (8, 4), "F16", Path(f"consolidated.0{k}.pth"), 0, 64) for k in range(2))
    found = check(Joined(parts, 0, 4))
    assert {"Joined.axis number", "Joined.heads number"} <= set(found)
