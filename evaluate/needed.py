"""What running a model needs and a plain installation does not have: torch, transformers, a device."""

from importlib.metadata import version
from importlib.util import find_spec

from ggufsmith.container.errors import Unsupported, Usage
from ggufsmith.container.text import choice

LIBRARIES = ("torch", "transformers")
LEAST = 5  # the release of transformers that keeps buffers apart from weights, and experts in one parameter
INSTALL = "pip install --upgrade 'ggufsmith[eval]'"
DEVICES = ("cuda", "mps", "cpu")


def need_libraries() -> None:
    """Unsupported, with the command that installs them, if torch or transformers is missing or too old."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"running a model needs {' and '.join(missing)}, which cannot be imported",
            fix=INSTALL,
        )
    found = version("transformers")
    if int(found.partition(".")[0]) < LEAST:
        raise Unsupported(f"running a model needs transformers {LEAST} or later, and {found} is installed", fix=INSTALL)


def find_device(wanted: str | None = None) -> str:
    """The device to compute on. wanted: one of DEVICES, cuda with a number such as cuda:1; None takes the best.

    Usage for another name, and for a device that this machine, or this build of torch, does not have; Unsupported
    without torch.
    """
    need_libraries()
    import torch

    counts = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    there = [name for name in DEVICES if counts[name]]
    if wanted is None:
        return there[0]
    kind, colon, number = wanted.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        raise Usage(f"unknown device {wanted!r}", fix=choice(there))
    if int(number or 0) >= counts[kind]:
        raise Usage(
            f"there is no device {wanted} here, or this build of torch cannot use it",
            fix=f"{choice(there)} Leaving --device out takes the best there is.",
        )
    return wanted
