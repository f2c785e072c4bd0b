"""What a plan leaves out as redundant is compared with what stands for it: a drop must not change the function.

Headers do not say whether a head is the embedding. Trained checkpoints often hold both, equal, and llama.cpp has one
tensor for some architectures; of a head that differs nothing would be left.
"""

from collections.abc import Collection

import numpy as np
from gguf.constants import Keys
from numpy.typing import NDArray

from ggufsmith.container.errors import Unsupported
from ggufsmith.container.layout import rows_of
from ggufsmith.convert.dequantize.scheme import read_f32
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.ops import Constant
from ggufsmith.convert.plan import Plan
from ggufsmith.convert.stored import Checkpoint, StoredTensor
from ggufsmith.pipeline.stream import CHUNK

FREQUENCIES = ".rotary_emb.inv_freq"
MAX_FREQUENCIES = 1 << 16  # numbers in one tensor of them
CLOSE = {"F32": 1e-4, "F16": 2e-3, "BF16": 1e-2}  # relative, for what a dtype holds of a frequency


def check_left_out(checkpoint: Checkpoint, plan: Plan, changed: Collection[str] = ()) -> tuple[str, ...]:
    """Sentences on what is left out, once its values were read. changed: names of tensors that adapters changed.

    Unsupported: a tensor differs from the one that llama.cpp takes in its place.
    """
    tied = [each for each in plan.left_out if each.twin is not None]
    frequencies = [each.source for each in plan.left_out if each.source.name.endswith(FREQUENCIES)]
    if not tied and not frequencies:
        return ()
    with checkpoint:
        store = Store(checkpoint)
        notes = []
        for source, twin in ((each.source, each.twin) for each in tied if each.twin is not None):
            found = "in their shapes" if source.shape != twin.shape else _difference(store, source, twin)
            if found is not None:
                model = f"{plan.architecture.name} models"
                raise Unsupported(
                    f"{source.name} and {twin.name} differ ({found}); llama.cpp reads one tensor for both in {model}",
                    where=checkpoint.folder,
                    fix=_way_out(source, twin, changed),
                )
            notes.append(f"{source.name} is left out: it equals {twin.name}, which llama.cpp uses instead")
        return (*notes, *_frequency_notes(store, frequencies, plan))


def _way_out(source: StoredTensor, twin: StoredTensor, changed: Collection[str]) -> str:
    if twin.name in changed and source.name not in changed:
        return (
            f"The adapter trains {twin.name} alone, so that {source.name} stays that of the base. If the two were "
            'trained as one, say so in its adapter_config.json: "ensure_weight_tying": true.'
        )
    where = "adapter" if source.name in changed else "checkpoint"
    return (
        f"Take {source.name} out of the {where} if it was changed by mistake; otherwise llama.cpp cannot run this "
        "model."
    )


def _difference(store: Store, source: StoredTensor, twin: StoredTensor) -> str | None:
    """The first row that is not the same bit for bit in float32; None if there is none."""
    rows, width = rows_of(source.shape)
    each = max(CHUNK // max(width, 1), 1)
    ours, theirs = np.empty((each, width), np.float32), np.empty((each, width), np.float32)
    for first in range(0, rows, each):
        count = min(each, rows - first)
        with np.errstate(all="ignore"):
            for part, out in ((source, ours), (twin, theirs)):
                read_f32(store, part, first, first + count, out[:count])
        unequal = (ours[:count].view(np.uint32) != theirs[:count].view(np.uint32)).any(axis=1)
        if unequal.any():
            return f"starting at row {first + int(unequal.argmax())}"
    return None


def _frequency_notes(store: Store, sources: list[StoredTensor], plan: Plan) -> list[str]:
    """Stored frequencies that are not those of the config: transformers passes over them as well, but may not have."""
    base, rope = plan.metadata.get(Keys.Rope.FREQ_BASE.format(arch=plan.architecture.name)), plan.architecture.rope
    scaled = Keys.Rope.SCALING_TYPE.format(arch=plan.architecture.name) in plan.metadata
    if scaled or any(isinstance(output.op, Constant) for output in plan.outputs):
        return []
    theta = float(base.data) if base is not None and isinstance(base.data, float) else rope.theta
    odd = [source.name for source in sources if not _of_base(store, source, theta)]
    if not odd:
        return []
    which = f"{odd[0]} does" if len(odd) == 1 else f"{len(odd)} tensors such as {odd[0]} do"
    return [f"{which} not hold the rotary frequencies of rope_theta {theta:g}; transformers also uses rope_theta"]


def _of_base(store: Store, source: StoredTensor, theta: float) -> bool:
    if source.dtype not in CLOSE or len(source.shape) != 1 or source.shape[0] > MAX_FREQUENCIES:
        return False
    found: NDArray[np.float32] = np.empty((source.shape[0], 1), np.float32)
    read_f32(store, source, 0, source.shape[0], found)
    expected = theta ** -(np.arange(source.shape[0]) / source.shape[0])
    return bool(np.allclose(found[:, 0], expected, rtol=CLOSE[source.dtype], atol=0))
