"""Places for tensors in a GGUF file, and the sources that may fill them."""

from collections.abc import Callable
from typing import NamedTuple

from gguf.constants import MODEL_TENSOR

from ggufsmith.convert.architecture import Dims
from ggufsmith.convert.gguf_names import NewTensor, Tensor, base_name
from ggufsmith.convert.ops import Op
from ggufsmith.convert.stored import StoredTensor

# llama.cpp's graphs read these in float32 whatever the file type (conversion/base.py, prepare_tensors).
ALWAYS_F32 = frozenset(
    {
        MODEL_TENSOR.FFN_GATE_INP,
        MODEL_TENSOR.FFN_GATE_INP_SHEXP,
        MODEL_TENSOR.POS_EMBD,
        MODEL_TENSOR.TOKEN_TYPES,
        MODEL_TENSOR.SSM_CONV1D,
        MODEL_TENSOR.SSM_CONV1D_Q,
        MODEL_TENSOR.SSM_CONV1D_K,
        MODEL_TENSOR.SSM_CONV1D_V,
        MODEL_TENSOR.SHORTCONV_CONV,
        MODEL_TENSOR.ALTUP_CORRECT_COEF,
        MODEL_TENSOR.ALTUP_PREDICT_COEF,
        MODEL_TENSOR.INDEXER_PROJ,
        NewTensor.HC_ATTN_FN,
        NewTensor.HC_FFN_FN,
        NewTensor.HC_HEAD_FN,
        NewTensor.INDEXER_Q_PROJ,
        NewTensor.INDEXER_K_PROJ,
    }
)


class Slot(NamedTuple):
    """A place for one GGUF tensor: block is None for tensors outside the blocks, part is mostly "weight" or "bias"."""

    tensor: Tensor
    block: int | None
    part: str

    @property
    def name(self) -> str:
        """Of the GGUF tensor."""
        base = base_name(self.tensor).format(bid=self.block)
        return f"{base}.{self.part}" if self.part else base


class SlotSource(NamedTuple):
    """A source for a slot; `expert` if it is one of several; `op` and `shape` if the slot is a part of it.

    either: the last two axes of its shape may be changed.
    """

    source: StoredTensor
    expert: int | None = None
    op: Callable[[Dims], Op] | None = None
    shape: str | None = None
    either: bool = False


def stays_f32(slot: Slot) -> bool:
    """Whether a matrix is stored in float32 whatever the output type."""
    name = slot.name
    return slot.tensor in ALWAYS_F32 or not name.endswith(".weight") or name.endswith("_norm.weight")
