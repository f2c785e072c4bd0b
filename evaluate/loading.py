"""Weights put into modules of the skeleton while they are needed, and functions put in the place of modules."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ggufsmith.evaluate.variants import Weights


@contextmanager
def loaded(
    module: Any, prefix: str, parameters: Mapping[str, Weights], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Within, the module has these weights, all that it needs. prefix: what the names have that its own do not.

    See `installed`.
    """
    own = {name.removeprefix(prefix): value for name, value in parameters.items()}
    if own.keys() != module.state_dict(keep_vars=True).keys():
        raise KeyError(f"{sorted(own.keys() ^ module.state_dict(keep_vars=True).keys())} of {type(module).__name__}")
    with installed(module, own, device) as weights:
        module.to(device)
        yield weights


@contextmanager
def installed(
    module: Any, parameters: Mapping[str, Weights], device: torch.device
) -> Iterator[dict[str, torch.Tensor]]:
    """Within, the module has these weights, which share memory with the arrays on the CPU; they are yielded by name."""
    empty: dict[str, Any] = module.state_dict(keep_vars=True)
    weights = {name: torch.from_numpy(value).to(device, _dtype(empty[name])) for name, value in parameters.items()}
    wrapped = {
        name: torch.nn.Parameter(value, requires_grad=False) if isinstance(empty[name], torch.nn.Parameter) else value
        for name, value in weights.items()
    }
    _install(module, wrapped)
    for name in wrapped:
        move_buffers(module.get_submodule(name.rpartition(".")[0]), device)
    try:
        yield weights
    finally:
        _install(module, {name: empty[name] for name in wrapped})


def _dtype(place: torch.Tensor) -> torch.dtype:
    """Whole numbers, as in DeepSeek-V4's table of experts, stay what they are; all else is float32."""
    return torch.float32 if place.is_floating_point() else place.dtype


def move_buffers(module: Any, device: torch.device) -> None:
    """The module's own, not those of the modules in it."""
    for name, value in module.named_buffers(recurse=False):
        setattr(module, name, value.to(device))


def _install(module: Any, parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        owner, _, own = name.rpartition(".")
        setattr(module.get_submodule(owner), own, value)


@contextmanager
def replaced(*modules_and_forward: Any) -> Iterator[None]:
    """Within, the modules do this instead of their own forward. The last argument is the function."""
    *modules, forward = modules_and_forward
    with ExitStack() as stack:
        for module in modules:
            module.forward = forward
            stack.callback(delattr, module, "forward")
        yield
