"""Which of a model's files hold its weights, where several could: names in, names out.

The order is that of transformers: safetensors before pickled files. Where one file and the shards of an index both are
there, two saves of a model have met in one folder; transformers takes the file and llama.cpp's converter the shards,
and nothing says which of them is the newer, so that it is an error. Whatever else holds weights and is not read, is
named in a note. A folder and the listing of a hub are judged alike.

Source: transformers 5, modeling_utils.py (_get_resolved_checkpoint_files, _add_variant).
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ggufsmith.container.errors import Malformed

NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
MISTRAL, META = "consolidated*.safetensors", "consolidated.*.pth"
PARAMS = "params.json"
ADAPTER, FINETUNED = "adapter_model.*", "lora.safetensors"  # of peft, of mistral-finetune
NAMED = 5  # files that a note names
MOVE_ONE = "Move {single} out of the folder, or {index}, whichever does not belong to the model that you want."


@dataclass(frozen=True)
class WeightFiles:
    """What to read.

    names:  of the files, in their order; none if there are no weights.
    index:  the name of the index that lists them, if one does; listed: tensor name -> file name, as it has it.
    notes:  sentences on files with weights that are not read.
    """

    names: tuple[str, ...]
    index: str | None = None
    listed: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Kind:
    """A way to store weights: in one file, or in shards with an index. Patterns: as in fnmatch.

    but: the beginnings of names that the patterns meet and that are none of it. original: only beside a params.json.
    """

    single: str
    index: str
    indexes: str
    files: str
    but: tuple[str, ...] = ()
    original: bool = False

    def of(self, names: Iterable[str], pattern: str) -> list[str]:
        """Those of the names that meet one of its patterns."""
        return [name for name in names if fnmatchcase(name, pattern) and not name.startswith(self.but)]


KINDS = (
    _Kind(
        "model.safetensors",
        "model.safetensors.index.json",
        "*.safetensors.index*.json",
        "*.safetensors",
        but=("consolidated", "adapter_", FINETUNED),
    ),
    _Kind("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin.index*.json", "pytorch_model*.bin"),
    _Kind(
        "consolidated.safetensors",
        "consolidated.safetensors.index.json",
        "consolidated*.safetensors.index*.json",
        MISTRAL,
        original=True,
    ),
    _Kind("", "", "", META, original=True),
)


def choose_weights(
    names: Iterable[str],
    read_index: Callable[[str], Mapping[str, str]],
    *,
    where: object,
    way_out: str = MOVE_ONE,
) -> WeightFiles:
    """Of the names of a model's files, those with its weights.

    read_index: the `weight_map` of an index. way_out: the next step where one file and an index contradict each other.

    Malformed: two saves of a model, several indexes of which none has the usual name, a shard that is missing.
    """
    names = sorted(names)
    chosen = WeightFiles(())
    for kind in KINDS:
        if not chosen.names and not (kind.original and PARAMS not in names):
            chosen = _of_kind(kind, names, read_index, where, way_out)
    if not chosen.names:
        return WeightFiles(tuple(name for name in names if name.endswith(".pt")))
    used = {*chosen.names, chosen.index}
    others = [name for kind in KINDS for pattern in (kind.files, kind.indexes) for name in kind.of(names, pattern)]
    passed = {*others, *_matching(names, FINETUNED)} - used
    notes = (*chosen.notes, *_notes(chosen, sorted(passed), _matching(names, ADAPTER)))
    return replace(chosen, notes=notes)


def _of_kind(
    kind: _Kind, names: list[str], read_index: Callable[[str], Mapping[str, str]], where: object, way_out: str
) -> WeightFiles:
    loose = kind.of(names, kind.files)
    index = _index(kind, names, loose, where)
    if index is None:
        if kind.single in loose:  # numbered shards are nothing to transformers without their index
            loose = [name for name in loose if not NUMBERED.fullmatch(name)]
        _check_numbers(loose, where)
        return WeightFiles(tuple(loose))
    listed = read_index(index)
    shards = sorted(set(listed.values()))
    if kind.single not in names or kind.single in shards:
        return WeightFiles(tuple(shards), index, listed)
    missing = [name for name in shards if name not in names]
    if missing or not shards:
        why = f"{len(missing)} of the {len(shards)} files that it lists are missing"
        return WeightFiles((kind.single,), notes=(f"{index} is not used, because {why}",))
    raise Malformed(
        f"this folder holds two saved copies of a model: {kind.single}, and {len(shards)} shards that {index} lists",
        where=where,
        also=[f"the shards are {_few(shards)}", f"transformers would read {kind.single}, llama.cpp the shards"],
        fix=way_out.format(single=kind.single, index=index),
    )


def _index(kind: _Kind, names: list[str], loose: list[str], where: object) -> str | None:
    """The index that counts. One whose files are all gone does not, unless it has the usual name."""
    if kind.index in names:
        return kind.index
    indexes = kind.of(names, kind.indexes)
    if len(indexes) > 1:
        raise Malformed(
            f"{len(indexes)} index files: {', '.join(indexes)}",
            where=where,
            fix="Keep the one that belongs to the weights you want.",
        )
    return indexes[0] if indexes and loose else None


def _check_numbers(names: list[str], where: object) -> None:
    """Malformed if shards that are numbered 1 to n are not all there."""
    sets: dict[tuple[str, int, str], set[int]] = {}
    for name in names:
        if numbered := NUMBERED.fullmatch(name):
            stem, number, count, suffix = numbered.groups()
            sets.setdefault((stem, int(count), suffix), set()).add(int(number))
    for (stem, count, suffix), numbers in sets.items():
        lost = next((number for number in range(1, count + 1) if number not in numbers), None)
        if lost is not None:
            raise Malformed(
                f"shard {stem}-{lost:05d}-of-{count:05d}.{suffix} is missing",
                where=where,
                fix="Download the missing file, or move the shards away if they do not belong to this model.",
            )


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern)]


def _notes(chosen: WeightFiles, passed: Collection[str], adapters: Collection[str]) -> list[str]:
    """What is not read. An index that is named in a note of its own is not named again."""
    passed = [name for name in passed if not any(note.startswith(f"{name} ") for note in chosen.notes)]
    read = f"the files that {chosen.index} lists" if chosen.index else _few(chosen.names)
    notes = [f"the weights are read from {read}, not from {_few(passed)}"] if passed else []
    if adapters:
        notes.append(f"{_few(adapters)} is an adapter, which is not merged unless --lora names its folder")
    return notes


def _few(names: Collection[str]) -> str:
    shown = list(names)[:NAMED]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
