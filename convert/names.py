"""Names of tensors as other trainers and tools write them, in the words that `gguf.tensor_mapping` knows."""

import re

# mlx-lm stacks the experts of a layer: mlp.switch_mlp.gate_proj (experts, rows, columns), of Mixtral as well.
SWITCH = re.compile(r"\.(?:mlp|block_sparse_moe)\.switch_mlp\.")


def plain_name(name: str) -> str:
    """Without the place of a language model inside another, and experts under the name they have in most models."""
    return SWITCH.sub(".mlp.experts.", name.replace("language_model.", ""))
