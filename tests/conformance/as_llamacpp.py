"""Models of transformers changed to compute what llama.cpp's graph does, where that is not what they were trained to.

What is compared then is everything else: which weight is where, and how it is read.
"""

from typing import Any

import torch
from torch.nn.functional import rms_norm


def _phimoe(model: Any) -> None:
    """RMS norms with biases instead of layer norms; the two best experts, weighed by a softmax that adds up to one."""

    def norm(module: Any) -> Any:
        return lambda x: rms_norm(x, x.shape[-1:], module.weight, module.eps) + module.bias

    def router(module: Any) -> Any:
        def route(x: Any) -> Any:
            scores = torch.nn.functional.linear(x, module.weight)
            best, chosen = scores.softmax(-1).topk(2)
            return scores, best / best.sum(-1, keepdim=True), chosen

        return route

    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.forward = norm(module)
        elif type(module).__name__ == "PhimoeTopKRouter":
            module.forward = router(module)


def _gemma3n(model: Any) -> None:
    """The standard deviation of a sample, not of a whole."""

    def top(module: Any) -> Any:
        deviations = torch.distributions.Normal(0, 1).icdf(torch.tensor(module.activation_sparsity))
        return lambda x: torch.relu(x - x.mean(-1, keepdim=True) - x.std(-1, keepdim=True) * deviations)

    for module in model.modules():
        if type(module).__name__ == "Gemma3nTextMLP":
            module._gaussian_topk = top(module)


@torch.no_grad()
def _hy_v4(model: Any) -> None:
    """Pairs of neighbours rotate, which halves do when rows lie in another order: the even ones before the odd ones."""
    sizes = model.config

    def turn(values: Any, head: int) -> None:
        """The rows of each head that rotate, which are its last ones."""
        rows = values.view(-1, head, *values.shape[1:])[:, head - sizes.qk_rope_head_dim :]
        rows.copy_(torch.cat((rows[:, ::2], rows[:, 1::2]), 1))

    for layer in model.model.layers:
        attention = layer.self_attn
        turn(attention.q_b_proj.weight, sizes.qk_head_dim)
        turn(attention.kv_a_proj_with_mqa.weight, sizes.kv_lora_rank + sizes.qk_rope_head_dim)
        if attention.indexer is not None:
            norm = attention.indexer.k_norm
            for values in (attention.indexer.wq_b.weight, attention.indexer.wk.weight, norm.weight, norm.bias):
                turn(values, sizes.index_head_dim)


def _granite_speech(model: Any) -> None:
    """The logits of Granite, which are divided. Until version 5, transformers ran the class of Granite inside."""
    weight, scale = model.lm_head.weight, model.config.text_config.logits_scaling
    model.lm_head.forward = lambda x: torch.nn.functional.linear(x, weight) / scale


# What transformers 5 computes otherwise than the model; `ggufsmith` computes what the model does.
CORRECTED = {"granite-speech": _granite_speech, "granite-speech-plus": _granite_speech}
CHANGES = {"phimoe": _phimoe, "gemma3n": _gemma3n, "hy-v4": _hy_v4, **CORRECTED}
