"""Files that others wrote: one reader of JSON, one rule for links, and errors that name the file."""

from pathlib import Path

import pytest

from ggufsmith.container.errors import Malformed, Usage
from ggufsmith.container.untrusted import contained, is_inside, load_json, parse_json, read_bytes, read_object

DAMAGED = [
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b'{"a": 1, "a": 2}', "the key 'a' occurs twice"),
    (b'{"b": {"a": 1, "a": 1}}', "the key 'a' occurs twice"),
    (b'[{"a": 1, "a": 1}]', "the key 'a' occurs twice"),
    (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("content", "message"), DAMAGED)
def test_damaged_json_is_one_error_that_names_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    for read in (load_json, read_object):
        with pytest.raises(Malformed, match=message) as caught:
            read(path)
        assert caught.value.where == str(path)


def test_what_json_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, true, "\xc3\xa9"]}')
    assert read_object(path) == {"a": [1, 2.5, None, True, "é"]}
    path.write_bytes(b"[1]")
    assert load_json(path) == [1]
    with pytest.raises(Malformed, match="the whole file is an array, expected an object"):
        read_object(path)
    assert parse_json(b'{"a": 1}', "where") == {"a": 1}


def test_numbers_that_json_lacks_as_transformers_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, {"__float__": "Infinity"}], "other": {"__float__": "12"}}')
    assert load_json(path) == {"time_step_limit": [0.0, float("inf")], "other": {"__float__": "12"}}


def test_a_file_that_is_too_large_or_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"x" * 101)
    with pytest.raises(Malformed, match="101 bytes, more than the 100 read at most"):
        read_bytes(path, limit=100)
    with pytest.raises(Usage, match="there is no such file"):
        read_bytes(tmp_path / "absent")


def linked(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("this system does not let the tests make symbolic links")
    return path


def test_links_stay_in_the_folder_or_in_the_caches_blobs(tmp_path: Path) -> None:
    """A link to a private file would put its content into the model."""
    for place in ("model", "secret", "hub/blobs", "hub/m/blobs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x").write_text("{}", encoding="utf-8")
    snapshot = tmp_path / "hub" / "m" / "snapshots" / "1f"
    inside = [
        (tmp_path / "model", tmp_path / "model" / "x"),
        (tmp_path / "model", linked(tmp_path / "model" / "other", tmp_path / "model" / "x")),
        (snapshot, linked(snapshot / "own", tmp_path / "hub" / "m" / "blobs" / "x")),
        (snapshot, linked(snapshot / "shared", tmp_path / "hub" / "blobs" / "x")),
    ]
    outside = [
        (tmp_path / "model", linked(tmp_path / "model" / "out", tmp_path / "secret" / "x")),
        (snapshot, linked(snapshot / "out", tmp_path / "secret" / "x")),
        (tmp_path / "model", tmp_path / "model" / ".." / "secret" / "x"),
    ]
    for folder, path in inside:
        assert is_inside(folder, path) and contained(folder, path) == path
        assert read_object(path, inside=folder) == {}
    for folder, path in outside:
        assert not is_inside(folder, path)
        with pytest.raises(Malformed, match="outside the model folder"):
            read_object(path, inside=folder)
