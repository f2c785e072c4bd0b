"""The names of what the `gguf` package does not know yet, against those of llama.cpp's own copy of it."""

import json
import subprocess
import sys

import pytest
from gguf.constants import MODEL_ARCH_NAMES, TENSOR_NAMES

import reference
from ggufsmith.convert.gguf_names import NewArch, NewKeys, NewTensor

pytestmark = pytest.mark.conformance

NAMES = """
import inspect, json
from gguf import constants as c
groups = [group for group in vars(c.Keys).values() if inspect.isclass(group)]
groups += [inner for group in groups for inner in vars(group).values() if inspect.isclass(inner)]
keys = {value: 0 for group in groups for value in vars(group).values() if isinstance(value, str)}
archs, tensors = ({each.name: name for each, name in names.items()} for names in (c.MODEL_ARCH_NAMES, c.TENSOR_NAMES))
print(json.dumps([archs, tensors, keys]))
"""


def test_the_names_are_llama_cpps_and_the_package_lacks_them() -> None:
    source = f"import sys; sys.path.insert(0, {str(reference.REFERENCE / 'gguf-py')!r})\n{NAMES}"
    done = subprocess.run(
        [sys.executable, "-c", source], env=reference.environment(), capture_output=True, text=True, check=True
    )
    archs, tensors, keys = json.loads(done.stdout)
    for known, here, there in ((MODEL_ARCH_NAMES, NewArch, archs), (TENSOR_NAMES, NewTensor, tensors)):
        own = {member.name: member.value for member in here}
        assert own.items() <= there.items()
        assert not own.keys() & {member.name for member in known}, "the package has these now"
    assert {value for name, value in vars(NewKeys).items() if name[0] != "_"} <= keys.keys()
