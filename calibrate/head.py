"""The matrix that makes the logits, which in many models is the embedding as well.

llama.cpp leaves it out of importance matrices, unless it is asked for. Calibrating does not: in small models with large
vocabularies it has a good part of all weights, and most of what it loses can be saved.
"""

from dataclasses import replace

import numpy as np

from ggufsmith.calibrate.gram import Inputs
from ggufsmith.evaluate.head import EMBEDDING

# What the errors of a row cost where it is looked up, as a part of the mean of the diagonal of the head's H, the same
# in every channel. For SmolLM2, both uses cost about as much; anything from 0.1 to 1 serves them within 2 %.
LOOKED_UP = np.float32(0.3)


def inputs_of(tensor: str, inputs: Inputs) -> Inputs:
    """What a tensor is given; an embedding, which has inputs only if it is the head, counts for both of its uses."""
    if tensor != EMBEDDING:
        return inputs
    (h,) = inputs.h
    return replace(inputs, h=(h + np.diag(np.full(len(h), LOOKED_UP * h.diagonal().mean(), np.float32)),))
