"""The config of a model folder, whichever layout of files it has."""

from pathlib import Path

from ggufsmith.container.errors import Malformed
from ggufsmith.container.untrusted import read_object
from ggufsmith.convert.config import Config
from ggufsmith.convert.params import params_config
from ggufsmith.convert.weightfiles import META, MISTRAL, PARAMS

LORA = "lora.safetensors"  # of mistral-finetune


def open_config(folder: Path) -> Config:
    """config.json, or the params.json of an original release in its words. Malformed if neither is there."""
    path = folder / "config.json"
    if path.is_file():
        return Config(read_object(path, inside=path.parent), path)
    if (folder / PARAMS).is_file() and any(any(folder.glob(weights)) for weights in (META, MISTRAL, LORA)):
        return params_config(folder / PARAMS)[0]
    raise Malformed(
        "there is no config.json, so this is not a Hugging Face model folder",
        where=folder,
        fix="Pass the folder that holds config.json and the *.safetensors files.",
    )
