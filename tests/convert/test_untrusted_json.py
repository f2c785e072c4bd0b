"""Every JSON file of a model or adapter folder is read by the same rules: damage is one error that names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ggufsmith.container.errors import Failure, Malformed
from ggufsmith.convert.checkpoint import weight_map
from ggufsmith.convert.lora.peft import open_adapter
from ggufsmith.convert.model_config import open_config
from ggufsmith.convert.params import params_config
from ggufsmith.naming.metadata import read_overrides

READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("config.json", lambda path: open_config(path.parent)),
    "index": ("model.safetensors.index.json", weight_map),
    "adapter": ("adapter_config.json", lambda path: open_adapter(path.parent)),
    "params": ("params.json", params_config),
    "overrides": ("overrides.json", read_overrides),
}
DAMAGED = {
    "a key twice": (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    "a number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "too deep": (b'{"a": ' * 100_000, "nested too deeply"),
    "a list": (b"[]", "the whole file is an array, expected an object"),
    "cut": (b'{"a": ', "not valid JSON"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(reader: str, damage: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    content, message = DAMAGED[damage]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Malformed, match=message) as caught:
        read(tmp_path / name)
    assert name in str(caught.value.where)


@pytest.mark.parametrize("reader", [name for name in READERS if name != "overrides"])
def test_a_link_out_of_the_folder_is_not_followed(reader: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    (tmp_path / "secret").write_text('{"a": 1}', encoding="utf-8")
    path = tmp_path / "model" / name
    path.parent.mkdir()
    try:
        path.symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("this system does not let the tests make symbolic links")
    with pytest.raises(Failure, match="outside the model folder"):
        read(path)
