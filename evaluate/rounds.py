"""Decoders whose blocks are used several times, as HRM-Text's: all of it between embedding and head is one block here.

What stands between two uses of a block is then for the decoder's own forward alone to know. All weights are in memory.
"""

from typing import Any

import torch


class Rounds(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """A decoder without its embedding, as one block. Its parameters have the names that they have in the decoder."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self._decoder = (decoder,)  # not one of its modules: the embedding is in there
        for name, module in decoder.named_children():
            if module is not decoder.get_input_embeddings():
                self.add_module(name, module)
        for name, parameter in decoder.named_parameters(recurse=False):
            self.register_parameter(name, parameter)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """What the head is given, (windows, context, width), of embedded tokens."""
        (decoder,) = self._decoder
        for name, parameter in self.named_parameters(recurse=False):
            setattr(decoder, name, parameter)
        found: torch.Tensor = decoder(inputs_embeds=states, use_cache=False)[0]
        return found


class Around(torch.nn.Module):  # type: ignore[misc]
    """The same decoder, seen from outside: its embedding, and the one block. It is called as decoders are."""

    def __init__(self, decoder: Any, rounds: Rounds) -> None:
        super().__init__()
        self._embedding, self._rounds = (decoder.get_input_embeddings(),), (rounds,)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> tuple[torch.Tensor]:
        """What decoders give first: what the head is given."""
        return (self._rounds[0](self._embedding[0](input_ids)),)
