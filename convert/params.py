"""params.json, which original releases have instead of config.json: Meta's and Mistral's differ."""

from pathlib import Path

from ggufsmith.container.untrusted import read_object
from ggufsmith.convert.config import Config
from ggufsmith.convert.mistral import is_mistral, mistral_config
from ggufsmith.convert.original import original_config


def params_config(path: Path) -> tuple[Config, tuple[str, ...]]:
    """A params.json in the words of config.json, and sentences on what it leaves open. Raises what is wrong with it."""
    return mistral_config(path) if is_mistral(read_object(path, inside=path.parent)) else (original_config(path), ())
