"""The config of a model folder, whichever layout of files it has."""

from pathlib import Path

from ggufsmith.container.errors import Malformed
from ggufsmith.convert.config import Config, read_json
from ggufsmith.convert.original import original_config
from ggufsmith.convert.weightfiles import META, PARAMS


def open_config(folder: Path) -> Config:
    """config.json, or the params.json of an original release in its words. Malformed if neither is there."""
    path = folder / "config.json"
    if path.is_file():
        return Config(read_json(path), path)
    if (folder / PARAMS).is_file() and any(folder.glob(META)):
        return original_config(folder / PARAMS)
    raise Malformed(
        "there is no config.json, so this is not a Hugging Face model folder",
        where=folder,
        fix="Pass the folder that holds config.json and the *.safetensors files.",
    )
