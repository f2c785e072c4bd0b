"""One model in several GGUF files: planning them, reading them as one, writing them so that they are never half there.

A shard is a GGUF file of its own, named `STEM-00001-of-00003.gguf`. The first holds all metadata, every one the keys
split.no (from 0 on), split.count (both UINT16) and split.tensors.count (INT32, of the whole model). Source: llama.cpp's
tools/gguf-split, and src/llama-model-loader.cpp, which opens a model by its first shard and finds the others by name.
So a set whose first shard is missing does not exist for anybody, and `SetWriter` gives and takes that name last and
first.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from gguf.constants import GGUFValueType as ValueType
from gguf.constants import Keys

from ggufsmith.container.disk import check_space, force_folder, rename
from ggufsmith.container.errors import Failure, Malformed, Usage
from ggufsmith.container.layout import Layout, TensorSpec, lay_out, padded
from ggufsmith.container.positional import Buffer
from ggufsmith.container.reader import Gguf, TensorInfo, open_gguf
from ggufsmith.container.values import Metadata, Value, i32
from ggufsmith.container.writer import COMPLETE, NEEDED, Writer, note_once

SUFFIX = ".gguf"
NO, COUNT, TENSORS = Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT, Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT
SPLIT_KEYS = frozenset((NO, COUNT, TENSORS))
MAX_SHARDS = 2**16 - 1  # split.count is a UINT16
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")  # at the end of a stem
_INTEGERS = {kind for kind in ValueType if kind.name.lstrip("U").startswith("INT")}


def shard_name(stem: str, number: int, count: int) -> str:
    """`stem-00001-of-00003.gguf`; `number` counts from 1. Usage beyond 65 535 shards."""
    if not 1 <= number <= count <= MAX_SHARDS:
        raise Usage(f"shard {number} of {count}: shards are numbered from 1, and there are at most {MAX_SHARDS}")
    return f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}"


# ---- planning ----


@dataclass(frozen=True)
class Limits:
    """Where to begin a new shard.

    max_size:     bytes of tensors in a shard, without its header, as llama.cpp counts them.
    max_tensors:  tensors in a shard.
    header_alone: the first shard has metadata only.
    """

    max_size: int | None = None
    max_tensors: int | None = None
    header_alone: bool = False

    def counts(self, tensors: Sequence[TensorSpec], alignment: int) -> tuple[int, ...]:
        """How many tensors each shard has: every one takes as many as the limits allow. Usage for a tensor larger than
        a shard may be.
        """
        counts, size = [0], 0
        for tensor in tensors:
            more = padded(tensor.nbytes, alignment)
            if self.max_size is not None and more > self.max_size:
                raise Usage(
                    f"{more} bytes do not fit in a shard of {self.max_size}",
                    where=tensor.name,
                    fix=f"Allow {max(padded(t.nbytes, alignment) for t in tensors)} bytes or more.",
                )
            full = self.max_size is not None and size + more > self.max_size
            if full or (self.max_tensors is not None and counts[-1] >= self.max_tensors):
                counts.append(0)
                size = 0
            counts[-1] += 1
            size += more
        return (0, *counts) if self.header_alone and tensors else tuple(counts)


@dataclass(frozen=True)
class ShardPlan:
    """The files of one model.

    whole:  all tensors, as if the files stood one behind the other: `offsets` and `size` count so, `header` is that of
            the first. This is the layout to stream to, with a `SetWriter`.
    shards: one layout per file. A model in one file has no split keys.
    starts: where each file begins in `whole`.
    """

    whole: Layout
    shards: tuple[Layout, ...]
    starts: tuple[int, ...]

    def paths(self, path: Path) -> list[Path]:
        """The names of the files, made from `path`, the name that the model would have in one file."""
        if len(self.shards) == 1:
            return [path]
        count, stem = len(self.shards), path.name.removesuffix(SUFFIX)
        return [path.with_name(shard_name(stem, number, count)) for number in range(1, count + 1)]


def plan_shards(layout: Layout, counts: Sequence[int]) -> ShardPlan:
    """The same tensors in files of `counts` tensors each. Pure. Usage for more shards than a header can count."""
    if len(counts) == 1:
        return ShardPlan(layout, (layout,), (0,))
    if len(counts) > MAX_SHARDS:
        raise Usage(
            f"{len(counts)} shards; there are at most {MAX_SHARDS}",
            fix="Allow larger shards with --split-max-size or --split-max-tensors.",
        )
    shards, offsets, start, first = [], [], 0, 0
    for number, count in enumerate(counts):
        keys = {
            NO: Value(ValueType.UINT16, number),
            COUNT: Value(ValueType.UINT16, len(counts)),
            TENSORS: i32(len(layout.tensors)),
        }
        tensors = layout.tensors[first : first + count]
        shard = lay_out({**(layout.metadata if number == 0 else {}), **keys}, tensors, alignment=layout.alignment)
        offsets += [start + offset for offset in shard.offsets]
        shards.append(shard)
        start, first = start + shard.size, first + count
    starts = tuple(accumulate((shard.size for shard in shards[:-1]), initial=0))
    whole = Layout(layout.metadata, layout.tensors, layout.alignment, shards[0].header, tuple(offsets), start)
    return ShardPlan(whole, tuple(shards), starts)


# ---- reading ----


@dataclass(frozen=True)
class GgufSet:
    """The files of one model, opened as one; close it, or use it in a `with`. The interface is that of `reader.Gguf`.

    path:     as it was asked for.
    files:    the shards in order; one for a model in one file.
    metadata: of the first, without the split keys.
    tensors:  of all shards, in order; their offsets count in their own file.
    """

    path: Path
    files: tuple[Gguf, ...]
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    _home: Mapping[str, Gguf]

    @classmethod
    def of(cls, file: Gguf) -> "GgufSet":
        """A model in one file."""
        return cls(file.path, (file,), file.metadata, file.tensors, dict.fromkeys(file.tensors, file))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Of the files, in the order of the shards."""
        return tuple(file.path for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def alignment(self) -> int:
        """Bytes, of the first file."""
        return self.files[0].alignment

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tensors each shard has: for `plan_shards`, to keep the split."""
        return tuple(len(file.tensors) for file in self.files)

    def file_of(self, tensor: TensorInfo) -> Gguf:
        """The file that holds a tensor."""
        return self._home[tensor.name]

    def read_into(self, tensor: TensorInfo, start: int, buffer: Buffer) -> None:
        """See `Gguf.read_into`."""
        self._home[tensor.name].read_into(tensor, start, buffer)

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gguf_set(path: Path | str) -> GgufSet:
    """Open a GGUF file, or all shards of a model by any one of them.

    Raises what `open_gguf` raises, with the shard concerned; Malformed also for a shard that is missing, stands under
    the name of another, belongs to another set, or repeats a tensor.
    """
    path = Path(path)
    with ExitStack() as stack:
        asked = stack.enter_context(open_gguf(path))
        number, count, total = _place(asked)
        files = [asked]
        if count > 1:
            stem = _stem(path, number, count)
            names = [path.with_name(shard_name(stem, k, count)) for k in range(1, count + 1)]
            _check_there(names)
            files = [asked if k == number else stack.enter_context(open_gguf(name)) for k, name in enumerate(names)]
            for k, file in enumerate(files):
                _check_place(file, (k, count, total))
        tensors: dict[str, TensorInfo] = {}
        home: dict[str, Gguf] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in home:
                    raise Malformed(f"tensor {name!r} is also in {home[name].path.name}", where=file.path)
                tensors[name], home[name] = tensor, file
        if count > 1 and len(tensors) != total:
            raise Malformed(
                f"together the {count} shards hold {len(tensors)} tensors, but their headers say {total}",
                where=path,
                fix="The shards belong to different models, or one is damaged. Download the set again.",
            )
        metadata = {key: value for key, value in files[0].metadata.items() if key not in SPLIT_KEYS}
        stack.pop_all()
        return GgufSet(path, tuple(files), metadata, MappingProxyType(tensors), home)


def _place(file: Gguf) -> tuple[int, int, int]:
    """split.no, split.count and split.tensors.count. A count of 0 or 1 is a model in one file: llama.cpp's merge
    leaves a 0 behind.
    """
    values = []
    for key, absent in ((COUNT, 1), (NO, 0), (TENSORS, len(file.tensors))):
        value = file.metadata.get(key)
        if value is not None and value.type not in _INTEGERS:
            raise Malformed(f"has type {value.type.name}, not UINT16", where=f"{file.path}: {key}")
        values.append(absent if value is None else int(value.data))  # type: ignore[arg-type]
    count, number, total = values
    if count in (0, 1):
        return 0, 1, len(file.tensors)
    if not 0 <= number < count <= MAX_SHARDS:
        raise Malformed(
            f"the header says shard {number} (counted from 0) of {count}, which is impossible",
            where=f"{file.path}: {NO}",
        )
    return number, count, total


def _stem(path: Path, number: int, count: int) -> str:
    """What the names of the shards have in common."""
    stem = path.name.removesuffix(SUFFIX)
    match = SHARD.search(stem)
    if not match or path.suffix != SUFFIX or (int(match[1]), int(match[2])) != (number + 1, count):
        raise Malformed(
            f"its header says that it is shard {number + 1} of {count}, its name does not",
            where=path,
            fix=f"Shards are found by their names. Rename the file to …-{number + 1:05d}-of-{count:05d}{SUFFIX}.",
        )
    return stem[: match.start()]


def _check_there(names: Sequence[Path]) -> None:
    missing = [name for name in names if not name.exists()]
    if missing:
        interrupted = _replaced(names[0]).exists()
        raise Malformed(
            f"missing: {len(missing)} of {len(names)} shards, the first is {missing[0].name}",
            where=names[0].parent,
            fix="A run was killed while it replaced this set: run it again."
            if interrupted
            else "Download the missing files into this folder.",
        )


def _check_place(file: Gguf, expected: tuple[int, int, int]) -> None:
    found = _place(file)
    if found != expected:
        raise Malformed(
            f"its header says shard {found[0] + 1} of {found[1]} of a model of {found[2]} tensors, "
            f"where shard {expected[0] + 1} of {expected[1]} of {expected[2]} tensors belongs",
            where=file.path,
            fix="The shards were swapped, or belong to different sets. Download this one again.",
        )


# ---- writing ----


class SetWriter:
    """Writes the files of a plan, with the interface of `writer.Writer`: offsets are those of `plan.whole`.

    path: the name that the model would have in one file; see `ShardPlan.paths`. The other arguments are the Writer's.

    Every shard is a Writer, which reserves, locks, verifies and flushes its own temporary file. When all are verified,
    `commit` moves the shards of an old set aside as `.NAME.replaced`, the first shard first, then names the new ones,
    the first shard last. An error or an interrupt in between puts the old set back; after a SIGKILL or a power loss in
    between, the first shard is missing, so nobody takes a mixture for a model, and the next run puts the old set back
    before it starts.
    """

    def __init__(self, path: Path | str, plan: ShardPlan, *, inputs: Sequence[Path] = (), **options: Any) -> None:
        self.plan = plan
        self.writers = [
            Writer(each, layout, inputs=inputs, **options)
            for each, layout in zip(plan.paths(Path(path)), plan.shards, strict=True)
        ]
        self._open = ExitStack()
        self._complete = False

    @property
    def paths(self) -> list[Path]:
        """Where the finished files are."""
        return [writer.path for writer in self.writers]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for writer in self.writers:
                stack.push(partial(_leave, writer))
                writer.claim()
            check_space(self.paths[0], sum(writer.missing for writer in self.writers))
            for writer in self.writers:
                writer.reserve()
            _recover(self.paths)
            self._open = stack.pop_all()
        return self

    def write(self, offset: int, data: Buffer) -> None:
        """See `Writer.write`. A write lies inside one tensor, so inside one file."""
        writer, offset = self._home(offset)
        writer.write(offset, data)

    def fill(self, offset: int, size: int, put: Callable[[int, int], int]) -> None:
        """See `Writer.fill`."""
        writer, offset = self._home(offset)
        writer.fill(offset, size, put)

    def record(self, offset: int, size: int, checksum: int) -> None:
        """See `Writer.record`."""
        writer, offset = self._home(offset)
        writer.record(offset, size, checksum)

    def keep(self) -> None:
        """See `Writer.keep`."""
        for writer in self.writers:
            writer.keep()

    def holds(self, offset: int, size: int) -> bool:
        """See `Writer.holds`."""
        writer, offset = self._home(offset)
        return writer.holds(offset, size)

    def _home(self, offset: int) -> tuple[Writer, int]:
        """The file that an offset of the plan lies in, and the offset there."""
        index = bisect_right(self.plan.starts, offset) - 1
        return self.writers[index], offset - self.plan.starts[index]

    @property
    def temporaries(self) -> list[Path]:
        """See `Writer.temporary`."""
        return [writer.temporary for writer in self.writers]

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each file begins in `plan.whole`."""
        return self.plan.starts

    def notes(self) -> Iterator[str]:
        """What became of an interrupted run's work."""
        if taken := sum(writer.taken for writer in self.writers):
            yield f"resumed: {taken} of {self.plan.whole.size} bytes were already written"
        if any(writer.lost for writer in self.writers):
            yield f"not resumed: what an interrupted run left was removed. {NEEDED}"
        if any(writer.strange for writer in self.writers):
            yield "not resumed: the partial file was written with other settings or inputs; starting over"

    def commit(self) -> None:
        """Verify every file, force it to the disk, then name all. Failure, and no new file, if one is not right."""
        for writer in self.writers:
            writer.seal()
        for writer in self.writers:
            writer.finish()
        if len(self.writers) == 1:
            self.writers[0].publish()
        else:
            self._publish()
        if self.writers[0].sync:
            force_folder(self.paths[0].parent)

    def _publish(self) -> None:
        aside: list[Path] = []
        named: list[Path] = []
        at = self.paths[0]
        try:
            for path in self.paths:
                at = path
                if path.exists():
                    aside.append(path)
                    rename(path, _replaced(path))
            for writer in reversed(self.writers):
                named.append(writer.path)
                writer.publish()
            self._complete = True
        except BaseException as error:
            self._complete = False
            # What cannot be undone either is left to the next run (see `_recover`); the error is what counts.
            for path in reversed(named):  # the first shard, if it has its name, goes first
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            for path in reversed(aside):
                with suppress(OSError):
                    rename(_replaced(path), path)
            if isinstance(error, OSError):
                raise Failure(f"cannot rename the old shard: {error.strerror}", where=at) from error
            raise
        for path in aside:
            with suppress(OSError):  # the new set has its names; the next run cleans up
                _replaced(path).unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (self._complete or (len(self.writers) == 1 and self.writers[0].complete)):
            for path in self.paths:
                note_once(error, COMPLETE.format(path))
        self._open.__exit__(kind, error, trace)


def _leave(writer: Writer, kind: object, error: BaseException | None, trace: object) -> None:
    """As the end of a `with`; what is complete, the set knows."""
    writer.leave(error)


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


def _recover(paths: Sequence[Path]) -> None:
    """What a killed run moved aside: back, or away if the new first shard had got its name. We hold all the locks."""
    at = paths[0]
    try:
        published = at.exists()
        for path in reversed(paths):
            at = path
            if _replaced(path).exists():
                if published:
                    _replaced(path).unlink()
                else:
                    rename(_replaced(path), path)
    except OSError as error:
        what = f"an interrupted run moved the old shard to {_replaced(at).name}, and it cannot be put back"
        raise Failure(
            f"{what}: {error.strerror}", where=at, fix="Allow writing to this folder, and try again."
        ) from error
