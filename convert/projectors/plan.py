"""The plan of a projector file: which tensors it has, what they are made from, and its keys.

As in `convert/plan.py`: every tensor of the encoders is used or dropped with a reason, every tensor that llama.cpp
wants is made, and all problems are collected and raised together.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.text import nearest
from ggufsmith.container.untrusted import read_object
from ggufsmith.container.values import Metadata
from ggufsmith.convert.architectures.later import LATER
from ggufsmith.convert.config import MAX_BLOCKS, Config, made
from ggufsmith.convert.plan import MAX_PROBLEMS, SOURCE_FORMATS, TensorPlan
from ggufsmith.convert.projectors import PROJECTORS
from ggufsmith.convert.projectors.record import EncoderRecord, Projector, ProjectorFacts, ProjectorRule
from ggufsmith.convert.stored import StoredTensor

CLIP = "clip"  # general.architecture
A_KIND = {"vision": "a vision encoder", "audio": "an audio encoder"}
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NESTED = ("media_proc_cfg", "image_processor")  # where those files keep what they say of images
ENCODERS = ("vision_config", "audio_config", "vision_encoder", "audio_encoder")


@dataclass(frozen=True)
class ProjectorPlan:
    """What to write into the file. kinds: "vision", "audio". notes: what the user should know."""

    record: Projector
    kinds: tuple[str, ...]
    outputs: tuple[TensorPlan, ...]
    metadata: Metadata
    notes: tuple[str, ...]


def find_projector(config: Config) -> Projector:
    """The record for config.json's "architectures". Unsupported if there is none."""
    classes = config.first("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    found = next((PROJECTORS[name] for name in names if name in PROJECTORS), None)
    if found is not None:
        return found
    name = names[0] if names else "of this checkpoint"
    if any(isinstance(config.first(key), Mapping) for key in ENCODERS) or any(each in LATER for each in names):
        near = next(iter(nearest(name, PROJECTORS)), None)
        raise Unsupported(
            f"the projector of {name} is not supported yet" + (f"; the nearest one that is is {near}" if near else ""),
            where=config.path,
            fix=f"Leave out --mmproj. Supported: {', '.join(PROJECTORS)}.",
        )
    raise Unsupported(
        f"{name} is a text model: there is nothing to make a projector from",
        where=config.path,
        fix="Leave out --mmproj.",
    )


def left_out_notes(config: Config, names: Iterable[str]) -> list[str]:
    """What to say of a checkpoint whose encoders are not converted. names: of its tensors."""
    classes = config.first("architectures")
    record = next((PROJECTORS[name] for name in classes or () if name in PROJECTORS), None)
    own = [record.own_name(name) for name in names] if record else []
    kinds = [
        encoder.kind
        for encoder in (record.encoders if record else ())
        if isinstance(config.first(encoder.section), Mapping) and any(name.startswith(encoder.prefixes) for name in own)
    ]
    if not kinds:
        return []
    found, its = " and ".join(A_KIND[kind] for kind in kinds), "its" if len(kinds) == 1 else "their"
    return [f"this checkpoint has {found}, which --mmproj writes into a file of {its} own"]


@contextmanager
def together_with(plan: Callable[[Callable[[str], int | None]], object] | None) -> Iterator[None]:
    """Adds what is wrong with the projector to what is found inside to be wrong with the text model.

    plan: plans the projector, for any token that it may ask for.
    """
    try:
        yield
    except (Malformed, Unsupported) as error:
        if plan is None:
            raise
        try:
            plan(lambda token: 0)
        except (Malformed, Unsupported) as other:
            also = (*error.also, other.what, *other.also)
            raise type(error)(error.what, where=error.where, fix=error.fix, also=also) from None
        raise


def processor_config(folder: Path) -> Config:
    """What the folder says of how images are prepared. Malformed for files that hold something else than an object."""
    found: dict[str, Any] = {}
    for name, nested in zip(PROCESSORS, NESTED, strict=True):
        path = folder / name
        if path.is_file():
            values = read_object(path, inside=folder)
            inside = values.get(nested)
            found |= {**values, **(inside if isinstance(inside, Mapping) else {})}
    return Config(found, folder / PROCESSORS[0])


def plan_projector(
    config: Config,
    processor: Config,
    tensors: Mapping[str, StoredTensor],
    token: Callable[[str], int | None],
) -> ProjectorPlan:
    """The whole file. token: gives the id of a token of the vocabulary.

    Unsupported lists everything that stands in the way of a faithful conversion.
    """
    record = find_projector(config)
    wanted = [each for each in record.encoders if isinstance(config.first(each.section), Mapping)]
    missing = [each for each in record.encoders if each not in wanted and not each.optional]
    if missing:
        raise Unsupported(
            f"config.json has no {missing[0].section}: this {record.classes[0]} checkpoint is a text model",
            where=config.path,
            fix="Leave out --mmproj.",
        )
    sources: dict[str, StoredTensor] = {}
    problems: list[str] = []
    for source in tensors.values():
        name = record.own_name(source.name)
        if name in sources:
            problems.append(f"{source.name}: {sources[name].name} is the same tensor")
        sources[name] = source
    outputs: list[TensorPlan] = []
    metadata: Metadata = {}
    notes: list[str] = []
    for encoder in wanted:
        _plan_encoder(_Work(record, encoder, sources, outputs, metadata, notes, problems), config, processor, token)
    problems = list(dict.fromkeys(problems))  # one source may be missing for several tensors
    if problems:
        raise Unsupported(
            f"the {record.classes[0]} projector cannot be converted faithfully; problems found: {len(problems)}",
            where=config.path.parent,
            also=[
                *problems[:MAX_PROBLEMS],
                *([f"and {len(problems) - MAX_PROBLEMS} more"][: len(problems) > MAX_PROBLEMS]),
            ],
            fix="Download the checkpoint again if files are missing. Without --mmproj, the text model is converted "
            "alone.",
        )
    return ProjectorPlan(record, tuple(each.kind for each in wanted), tuple(outputs), metadata, tuple(notes))


@dataclass(frozen=True)
class _Work:
    """What the plan of one encoder reads, and what it adds to."""

    record: Projector
    encoder: EncoderRecord
    sources: Mapping[str, StoredTensor]
    outputs: list[TensorPlan]
    metadata: Metadata
    notes: list[str]
    problems: list[str]


def _plan_encoder(work: _Work, config: Config, processor: Config, token: Callable[[str], int | None]) -> None:
    encoder, problems = work.encoder, work.problems
    section = Config(config.mapping(encoder.section), config.path).with_defaults(encoder.defaults)
    here = [name for name in work.sources if name.startswith(encoder.prefixes)]
    if not here:
        problems.append(
            f"config.json has a {encoder.section}, but the checkpoint has no tensor of the {encoder.kind} encoder "
            f"({', '.join(f'{prefix}*' for prefix in encoder.prefixes)})"
        )
        return
    facts = ProjectorFacts(section, config, processor, token)
    before = len(problems)
    for name, size in encoder.sizes.items():
        with _collecting(problems, encoder.section):
            facts = replace(facts, sizes={**facts.sizes, name: size(facts)})
        if len(problems) > before:
            return  # what is missing follows from the sizes
    if facts.sizes["blocks"] > MAX_BLOCKS:
        problems.append(f"{encoder.section}: {facts.sizes['blocks']} blocks, over the limit of {MAX_BLOCKS}")
        return
    for key, allowed in encoder.require.items():
        value = section.first(key)
        if value is not None and value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            problems.append(f"{encoder.section}: {key} is {value!r:.60}, but llama.cpp assumes {wanted}")
    with _collecting(problems, encoder.section):
        if encoder.check and (found := encoder.check(facts)):
            problems.append(f"{encoder.section}: {found}")
    for each in encoder.keys:
        with _collecting(problems, encoder.section):
            if (value := each.value(facts)) is not None:
                work.metadata[each.name] = made(each.make, value, section, each.name)
    used: set[str] = set()
    for rule in encoder.tensors:
        with _collecting(problems, encoder.section):
            if rule.when(facts):
                used |= _plan_rule(work, rule, facts)
    dropped: Counter[str] = Counter()
    for name in (name for name in here if name not in used):
        why = next(
            (why for part, why in work.record.drop.items() if name.startswith(part) or name.endswith(part)), None
        )
        if why is None:
            problems.append(
                f"{work.sources[name].name}: llama.cpp has no tensor for it in {work.record.type} projectors"
            )
        else:
            dropped[why] += 1
    work.notes.extend([encoder.note] if encoder.note else [])
    work.notes.extend(f"{count} dropped from the projector: {why}" for why, count in dropped.items())
    unknown = [key for key in section.unused if key not in encoder.harmless]
    if unknown:
        work.notes.append(f"these keys of {encoder.section} are not used: {', '.join(unknown)}")


def _plan_rule(work: _Work, rule: ProjectorRule, facts: ProjectorFacts) -> set[str]:
    """Add the tensors of a rule, or what is wrong with them. The names that they are made from."""
    used: set[str] = set()
    copies = list(rule.copies(facts)) if "{}" in rule.source else [(0, 0)]
    expected = facts.shape(rule.shape)
    for number, block in copies:
        name, sources = rule.name.format(block), list[StoredTensor]()
        wanted = [each.format(number) for each in (rule.source, *rule.more) if each]
        for each in wanted:
            source = work.sources.get(each)
            if source is None:
                work.problems.append(f"{each} is missing from the checkpoint")
                continue
            used.add(each)
            if misfit := _misfit(source, expected, rule):
                work.problems.append(misfit)
                continue
            sources.append(source)
        if len(sources) < len(wanted):
            continue
        op = rule.op(facts)
        shape = op.shape(*(source.shape for source in sources))
        small = len(shape) <= 1 or name.endswith("_norm.weight") or not (rule.types or name.endswith(".weight"))
        work.outputs.append(TensorPlan(name, shape, op, tuple(sources), small, rule.types))
    return used


def _misfit(source: StoredTensor, expected: tuple[int, ...], rule: ProjectorRule) -> str | None:
    """What is wrong with a source; a rule without a shape takes a single number."""
    if source.shape != expected and not (rule.shape == "" and source.shape == (1,)):
        return f"{source.name}: shape {list(source.shape)}, but the config says {list(expected)}"
    if source.dtype not in SOURCE_FORMATS:
        return f"{source.name}: {source.dtype} weights are not supported ({', '.join(SOURCE_FORMATS)} are)"
    return None


@contextmanager
def _collecting(problems: list[str], section: str) -> Iterator[None]:
    """Adds what is malformed inside to the problems, and goes on."""
    try:
        yield
    except Malformed as error:
        name = Path(error.where).name if error.where else ""
        problems.append(f"{section if name == 'config.json' else name}: {error.what}")
