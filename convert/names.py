"""Names of tensors as other trainers and tools write them, in the words that `gguf.tensor_mapping` knows."""

import re
from collections.abc import Collection, Mapping

from ggufsmith.container.errors import Malformed, Unsupported

# mlx-lm stacks the experts of a layer: mlp.switch_mlp.gate_proj (experts, rows, columns), of Mixtral as well.
SWITCH = re.compile(r"\.(?:mlp|block_sparse_moe)\.switch_mlp\.")
# Modules around others, which torch.compile, FSDP, activation checkpointing and Lightning leave in names, anywhere.
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
WRAPPED = re.compile("|".join(sorted(WRAPPERS)))
# How names begin; what stands before it in all of them is the name of a wrapper, such as DDP's "module.".
ROOTS = ("model.layers.", "layers.", "language_model.", "model.language_model.", "thinker.")
# What peft puts into the names of a model whose adapters were not merged.
UNMERGED = re.compile(r"\.(lora_\w+|base_layer|original_module|modules_to_save|token_adapter)(\.|$)")


def plain_name(name: str) -> str:
    """Without the place of a language model inside another, and experts under the name they have in most models."""
    return SWITCH.sub(".mlp.experts.", name.replace("language_model.", "").replace("text_model.", ""))


def without_wrappers(name: str) -> str:
    """Without the modules that wrap others, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def unwrapped(names: Collection[str], where: object) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Name -> the model's own name for it, and sentences about what is passed over.

    Unsupported: names of an adapter that was never merged. Malformed: two names that are one without their wrappers.
    """
    unmerged = [name for name in names if UNMERGED.search(name)]
    if unmerged:
        raise Unsupported(
            f"{len(unmerged)} tensors, such as {unmerged[0]}, belong to an adapter that was not merged into the model",
            where=where,
            fix="Load the model where it was trained, merge (model.merge_and_unload()), and save it again.",
        )
    wrapped = [name for name in names if WRAPPED.search(name)]  # of the names of a large model, mostly none
    found = {name: name for name in names} | {name: without_wrappers(name) for name in wrapped}
    wrappers = sorted(WRAPPERS & {part for name in wrapped for part in name.split(".")})
    before = _before(list(found.values()))
    own = {name: inner.removeprefix(before) for name, inner in found.items()}
    if len(set(own.values())) < len(own):
        twice = next(name for name in own.values() if list(own.values()).count(name) > 1)
        raise Malformed(f"{twice} occurs twice, under names with and without {', '.join(wrappers)}", where=where)
    passed = [*wrappers, *([before] if before else [])]
    return own, tuple(f"tensor names are read without {part!r}, a wrapper around the model" for part in passed)


def _before(names: list[str]) -> str:
    """What stands in every name before the model's own, with the point behind it."""
    if not names:
        return ""
    first, last = (name.split(".")[:-1] for name in (min(names), max(names)))  # all others are between the two
    common = next((k for k, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    for count in range(min(common, len(last)) + 1):
        before = "".join(f"{part}." for part in first[:count])
        if any(name.removeprefix(before).startswith(ROOTS) for name in names):
            return before
    return ""
