"""Leaving layers of a model out: new names for the tensors of the others, and keys without the values of the gone."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from gguf.constants import Keys

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.values import Metadata, Value, u32
from ggufsmith.quantize.recipes.options import layers_of
from ggufsmith.quantize.recipes.rules import BLOCK, Facts, block_of


def parse_layers(layers: Sequence[str | int]) -> tuple[int, ...]:
    """The numbers of layers from texts such as `3,4,5`, or from numbers. Usage for anything else."""
    return tuple(sorted({number for each in layers for number in layers_of(str(each))}))


def prune_layers(names: Mapping[str, object], layers: Sequence[int], blocks: int) -> dict[str, str]:
    """New names without these layers, the layers behind them moved up; a tensor of such a layer has none.

    Usage for a layer that the model does not have, and for all layers; Unsupported for an encoder and a decoder, each
    with layers of its own.
    """
    gone = sorted(set(layers))
    stacked = next((name for name in names if gone and BLOCK.search(name) and block_of(name) is None), None)
    if stacked is not None:
        raise Unsupported(
            "--prune-layers: this model has more than one stack of layers",
            where=stacked,
            fix="Quantize it without --prune-layers.",
        )
    if gone and (gone[0] < 0 or gone[-1] >= blocks):
        bad = next(layer for layer in gone if not 0 <= layer < blocks)
        raise Usage(f"--prune-layers {bad}: there is no such layer", fix=f"The model has layers 0 to {blocks - 1}.")
    if len(gone) == blocks and gone:
        raise Usage("--prune-layers would remove every layer of the model", fix="List fewer layers.")
    renamed = {}
    for name in names:
        block = block_of(name)
        if block is None or block not in gone:
            lower = 0 if block is None else bisect_left(gone, block)
            renamed[name] = BLOCK.sub(f"blk.{block - lower}.", name, count=1) if block and lower else name
    return renamed


def without_layers(metadata: Metadata, layers: Sequence[int], facts: Facts) -> Metadata:
    """The keys of a model without these layers: of arrays with one value per layer, those of the others."""
    if not layers:
        return metadata

    def pruned(key: str, value: Value) -> Value:
        per_layer = isinstance(value.data, np.ndarray) and len(value.data) == facts.blocks
        if per_layer and key.startswith(f"{facts.architecture}."):
            return replace(value, data=np.delete(value.data, sorted(set(layers))))
        return value

    return {key: pruned(key, value) for key, value in metadata.items()}


def fewer_layers(overrides: Metadata, layers: Sequence[int], facts: Facts) -> Metadata:
    """These keys to set, and the number of layers that are left."""
    if not layers:
        return overrides
    count = Keys.LLM.BLOCK_COUNT.format(arch=facts.architecture)
    kept = {key: value for key, value in overrides.items() if key != count}
    return {**kept, count: u32(facts.blocks - len(set(layers)))}
