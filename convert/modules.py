"""The parts of a folder of sentence-transformers, which modules.json lists, and the matrices behind the pooling.

Source: llama.cpp's conversion/gemma.py (EmbeddingGemma), src/models/gemma-embedding.cpp; sentence_transformers' Dense.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf.constants import MODEL_TENSOR

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.untrusted import contained, load_json, read_object
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.checkpoint import read_tensors
from ggufsmith.convert.config import Config
from ggufsmith.convert.stored import Checkpoint, StoredTensor

# Types of modules by the end of their names: what pools, what stands behind, and what llama.cpp does by itself.
POOLING, DENSE, OTHERS = "Pooling", "Dense", ("Transformer", "Normalize")
ALONE = "Move modules.json away to convert the language model alone."
# Of the two matrices that llama.cpp has a place for: the tensor, and the size that config.json has none of.
PLACES = (("dense_2.weight", "out_features", "dense_2_feat_out"), ("dense_3.weight", "in_features", "dense_3_feat_in"))


def read_modules(folder: Path) -> tuple[Mapping[str, Any], ...]:
    """The modules, each an object with its "type" and "path"; none for a folder without them. Malformed: damaged."""
    listed = folder / "modules.json"
    if not listed.is_file():
        return ()
    modules = load_json(listed, inside=folder)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise Malformed("a list of objects was expected", where=listed)
    return tuple(modules)


def module_config(folder: Path, module: Mapping[str, Any]) -> tuple[Path, Mapping[str, Any]]:
    """A module's folder and its config.json. Malformed if it is missing, damaged, or outside the model's folder."""
    file = contained(folder, folder / str(module.get("path")) / "config.json")
    if not file.is_file():
        raise Malformed("modules.json names this file, but it is missing", where=file, fix="Download the missing file.")
    return file.parent, read_object(file, inside=folder)


def is_a(module: Mapping[str, Any], kind: str) -> bool:
    """Whether a module is of a class of this name."""
    return str(module.get("type")).endswith(kind)


def with_dense(checkpoint: Checkpoint, config: Config, record: Architecture, folder: Path) -> tuple[Checkpoint, Config]:
    """The checkpoint with the matrices behind the pooling, and the config with their sizes.

    Unsupported: modules that llama.cpp has no place for, or other functions than the identity behind a matrix.
    """
    modules = read_modules(folder) if record.pooling else ()
    strange = [module for module in modules if not any(is_a(module, kind) for kind in (POOLING, DENSE, *OTHERS))]
    dense = [module for module in modules if is_a(module, DENSE)]
    places = PLACES if any(rule.tensor is MODEL_TENSOR.DENSE_2_OUT for rule in record.tensors) else ()
    if strange or len(dense) > len(places):
        extra = [*strange, *dense[len(places) :]]
        raise Unsupported(
            f"llama.cpp has no place for the module {str(extra[0].get('type')).rpartition('.')[2]!r:.60} of a "
            f"{record.name} model",
            where=folder / "modules.json",
            fix=ALONE,
        )
    tensors, sizes = dict[str, StoredTensor](), dict[str, Any]()
    for module, (name, key, size) in zip(dense, places, strict=False):
        home, settings = module_config(folder, module)
        function = str(settings.get("activation_function", "Identity"))
        weights = contained(folder, home / "model.safetensors")
        if not function.endswith("Identity"):
            computed = function.rpartition(".")[2]
            raise Unsupported(
                f"the module {home.name} computes {computed!r:.60} of its outputs, which llama.cpp does not do",
                where=home,
                fix=ALONE,
            )
        if not weights.is_file():
            raise Malformed("modules.json needs this file, but it is missing", where=weights, fix="Download it.")
        stored = {source.name: source for source in read_tensors(weights)}
        if set(stored) != {"linear.weight"}:
            raise Unsupported(
                f"the module {home.name} holds {', '.join(sorted(stored))}; llama.cpp takes linear.weight alone",
                where=weights,
                fix=ALONE,
            )
        tensors[name] = replace(stored["linear.weight"], name=name)
        sizes[size] = settings.get(key)
    if not tensors:
        return checkpoint, config
    return replace(checkpoint, tensors={**checkpoint.tensors, **tensors}), config.with_defaults(sizes)
