"""The whole hostile corpus in a process with little memory, on files that claim to be huge; and canaries.

`ulimit -v` has no equal on every system, so this runs where Python has RLIMIT_AS.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf.constants import GGUFValueType as T
from test_reader import HOSTILE, HUGE, ROW, U32, U64, Raw, pair, record, text

import checkpoints
from ggufsmith.container.errors import Failure

LIMITED = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS works on Linux")
MEMORY = 700 * 2**20  # bytes of address space beyond what the imports took

CHILD = """
import resource, sys
from ggufsmith.container.errors import Failure
from ggufsmith.container.shards import open_gguf_set
used = int(open("/proc/self/statm", encoding="ascii").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[2:]:
    try:
        open_gguf_set(path).close()
        print("opened", path)
    except Failure as error:
        print("refused", path, str(error).splitlines()[0])
"""

STRINGS = U32(T.STRING)
# Files whose claims are true as far as the file goes: it is sparse, and so large that what they ask for "fits".
SPARSE: dict[str, tuple[bytes, int]] = {
    "2^24 empty strings": (Raw(pairs=[pair("k", T.ARRAY, STRINGS + U64(2**24))]).build(), 2**40),
    "2^24 + 1 strings": (Raw(pairs=[pair("k", T.ARRAY, STRINGS + U64(2**24 + 1))]).build(), 2**40),
    "2^40 strings": (Raw(pairs=[pair("k", T.ARRAY, STRINGS + U64(2**40))]).build(), 2**43),
    "2^38 bytes": (Raw(pairs=[pair("k", T.ARRAY, U32(T.UINT8) + U64(2**38))]).build(), 2**40),
    "a string of 2^38 bytes": (Raw(pairs=[pair("k", T.STRING, U64(2**38))]).build(), 2**40),
    "a string of 2^28 bytes": (Raw(pairs=[pair("k", T.STRING, U64(2**28))]).build(), 2**40),
    "2^16 pairs": (Raw(pair_count=2**16).build(), 2**40),
    "2^20 tensors": (Raw(record_count=2**20).build(), 2**40),
    "2^32 of both": (Raw(record_count=2**32, pair_count=2**32).build(), 2**40),
    "alignment of 2^31": (
        Raw(pairs=[pair("general.alignment", T.UINT32, U32(2**31))], records=[record("t")], data=ROW).build(),
        2**33,
    ),
    "a tensor of 2^40 bytes": (Raw(records=[record("t", (2**38,))]).build(), 2**41),
}


@LIMITED
def test_with_little_memory(tmp_path: Path) -> None:
    """Every kind of damage, and files of terabytes: one answer each, never a MemoryError, and no time without end."""
    paths = []
    for number, (raw, _) in enumerate(HOSTILE.values()):
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(raw.build())
    for name, (head, size) in SPARSE.items():
        paths.append(tmp_path / f"{name}.gguf")
        paths[-1].write_bytes(head)
        try:
            os.truncate(paths[-1], size)
        except OSError:
            paths.pop()  # this file system has no files that large
    assert len(paths) > len(HOSTILE)
    command = [sys.executable, "-c", CHILD, str(MEMORY), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    opened = {Path(line.partition(" ")[2]).stem for line in lines if line.startswith("opened")}
    assert opened <= {"a tensor of 2^40 bytes", "2^24 empty strings", "alignment of 2^31"}


@pytest.mark.parametrize("depth", [1, 2, 1000])
def test_arrays_in_arrays(tmp_path: Path, depth: int) -> None:
    """Any depth is refused at the first, so that no recursion follows the file."""
    value = U32(T.ARRAY) + (U32(T.ARRAY) + U64(1)) * depth + U32(T.UINT8) + U64(1) + b"\1"
    path = tmp_path / "x.gguf"
    path.write_bytes(Raw(pairs=[text("k") + value]).build())
    with pytest.raises(Failure, match="array of arrays"):
        _open(path)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "C:\\x", "a b", "\x1b[2J", "'; rm -rf ~", "龙", "x" * 63, "a" * 60 + "龙"],
)
def test_hostile_names_are_only_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(Raw(records=[record(name)], data=ROW).build())
    _open(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["x.gguf"]


@pytest.mark.parametrize("raw", [b"\xc3\x28", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\xaf", b"\xff" * 3])
def test_invalid_utf8(tmp_path: Path, raw: bytes) -> None:
    """Not in keys and names; in values it is kept, byte for byte."""
    path = tmp_path / "x.gguf"
    for broken in (
        Raw(pairs=[pair(raw, T.UINT8, b"\1")]),
        Raw(records=[record(raw)], data=ROW),
    ):
        path.write_bytes(broken.build())
        with pytest.raises(Failure, match="not valid UTF-8"):
            _open(path)
    path.write_bytes(Raw(pairs=[pair("k", T.STRING, text(raw))]).build())
    assert _open(path)["k"].encode("utf-8", "surrogateescape") == raw


def _open(path: Path) -> dict[str, str]:
    from ggufsmith.container.shards import open_gguf_set

    with open_gguf_set(path) as model:
        return {key: str(value.data) for key, value in model.metadata.items()}


def test_every_header_field_can_be_huge(tmp_path: Path) -> None:
    """Each eight bytes of a sound header in turn become 2^64 - 1, 2^63 and 2^40: refused, or still a sound file."""
    whole = Raw(
        pairs=[pair("s", T.STRING, text("ab")), pair("a", T.ARRAY, STRINGS + U64(1) + text("c"))],
        records=[record("t", (8, 2))],
        data=ROW * 2,
    ).build()
    path = tmp_path / "x.gguf"
    for at in range(4, len(whole) - 64 - 8):
        for value in (HUGE, 2**63, 2**40):
            damaged = bytearray(whole)
            struct.pack_into("<Q", damaged, at, value)
            path.write_bytes(damaged)
            try:
                _open(path)
            except Failure:
                continue


# ---- nothing from a checkpoint is executed ----

CANARY = "import pathlib; pathlib.Path({path!r}).write_text('executed')"


def _code(folder: Path, canary: str) -> None:
    """Python beside the weights, named in every way that makes transformers import it."""
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "__init__.py",
        "sitecustomize.py",
    ):
        (folder / name).write_text(canary + "\nclass X:\n    pass\n", encoding="utf-8")
    for name, keys in (
        ("config.json", {"AutoConfig": "configuration_evil.X", "AutoModelForCausalLM": "modeling_evil.X"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_evil.X", "tokenization_evil.X"]}),
    ):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        content["auto_map"] = keys
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def _template(folder: Path, canary: str) -> None:
    """A chat template that runs code if it is rendered without a sandbox."""
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["chat_template"] = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('x') }}"
    )
    content["chat_template"] = content["chat_template"].replace("'x'", repr(f'{sys.executable} -c "{canary}"'))
    path.write_text(json.dumps(content), encoding="utf-8")


def _pickle(folder: Path, canary: str) -> None:
    """Pickles under the names of a checkpoint and of training files."""
    code = b"cbuiltins\nexec\n(V" + canary.encode() + b"\ntR."
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "model.pkl"):
        (folder / name).write_bytes(code)


def _card(folder: Path, canary: str) -> None:
    """YAML that makes objects."""
    lines = ["---", "license: mit", f"x: !!python/object/apply:builtins.exec [{json.dumps(canary)}]", "---", ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("plant", [_code, _template, _pickle, _card])
def test_nothing_of_a_checkpoint_is_executed(tmp_path: Path, plant: Callable[[Path, str], None]) -> None:
    """A real run in the model folder itself, with every canary in it; then the looking tools on its output."""
    model = checkpoints.write("qwen2", tmp_path / "model")
    sign = tmp_path / "executed"
    plant(model, CANARY.format(path=str(sign)))
    code = "import sys; from ggufsmith.cli.app import main; sys.argv[0] = 'ggufsmith'; main()"
    for arguments in (
        ["convert", str(model), "-o", "out.gguf"],
        ["inspect", "out.gguf"],
        ["verify", "out.gguf", "--source", str(model)],
        ["card", "out.gguf", "-o", "CARD.md"],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            cwd=model,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not sign.exists(), arguments


def test_the_canaries_sing(tmp_path: Path) -> None:
    """They would be heard: unpickled, the file does what it says."""
    import pickle

    sign = tmp_path / "executed"
    _pickle(tmp_path, CANARY.format(path=str(sign)))
    with (tmp_path / "model.pkl").open("rb") as file:
        pickle.load(file)
    assert sign.exists()
