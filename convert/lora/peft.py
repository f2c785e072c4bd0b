"""A PEFT adapter folder: what its configuration and its tensors say about the base model's weights.

adapter_model.safetensors holds, under the names of the base's modules behind "base_model.model.",

    .lora_A.weight (rank, in), .lora_B.weight (out, rank)           weight += scale * B @ A
    .lora_embedding_A (rank, rows), .lora_embedding_B (embd, rank)  weight += scale * (B @ A)^T
    .lora_magnitude_vector                                          DoRA's length of each row, or embedding column
    .lora_B.bias (out,)                                             bias += scale * it (lora_bias)
    .token_adapter.trainable_tokens_delta (n, embd)                 rows that take the place of the base's
    .base_layer.weight                                              a copy of the base's tensor, before the update
    any other name                                                  a tensor trained whole (modules_to_save, bias)

with scale = alpha / rank, or alpha / sqrt(rank) for rslora; the rank is that of the tensors.
Source: peft 0.21, tuners/lora/config.py and layer.py, utils/save_and_load.py, utils/other.py (get_pattern_key).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.untrusted import contained, read_object
from ggufsmith.convert.architecture import Architecture
from ggufsmith.convert.checkpoint import read_tensors
from ggufsmith.convert.config import Config, as_number
from ggufsmith.convert.names import without_wrappers
from ggufsmith.convert.stored import StoredTensor

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
# The ends of names, with what older and newer versions of peft put behind them.
PART = re.compile(
    r"(?P<module>.+)\.(?P<role>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(\.default)?(\.weight)?"
)
BIAS = re.compile(r"(?P<module>.+)\.lora_B(\.default)?\.bias")
TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(\.default)?")
DTYPES = ("F64", "F32", "F16", "BF16")
# Settings under which the tensors mean something else than above.
OTHER_MEANINGS: Mapping[str, str] = {
    "layer_replication": "layers of the base are repeated",
    "target_parameters": "parameters without a module of their own are trained, such as fused experts",
    "use_qalora": "inputs are averaged in groups (QALoRA)",
    "use_bdlora": "the updates are block-diagonal (BD-LoRA)",
    "arrow_config": "several adapters are mixed by a router (Arrow)",
    "kasa_config": "the updates are scaled by singular values (KaSA)",
    "monteclora_config": "the updates are sampled (MonteCLoRA)",
}
# Initializations that take the first update out of the base's weights.
REWRITES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
BY_PEFT = "Merge the adapter into its base model with peft (merge_and_unload), and convert the result."
MAX_PATTERN, MAX_REPEATS, MAX_NAME = 256, 2, 256  # patterns come from the file: no time without bounds


@dataclass(frozen=True)
class Update:
    """A low-rank update of one weight.

    target:    the weight's name, as the base model calls it.
    down, up:  A (rank, in) and B (out, rank); of an embedding (rank, rows) and (embd, rank).
    scale:     of B @ A.
    magnitude: DoRA's lengths, (out,), of an embedding (embd,).
    bias:      (out,), which the layer's bias gets `scale` times.
    """

    target: str
    down: StoredTensor
    up: StoredTensor
    scale: float
    embedding: bool = False
    magnitude: StoredTensor | None = None
    bias: StoredTensor | None = None

    @property
    def rank(self) -> int:
        """Columns of B, and rows of A."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it belongs to."""
        out, width = self.up.shape[0], self.down.shape[1]
        return (width, out) if self.embedding else (out, width)


@dataclass(frozen=True)
class Tokens:
    """Rows of an embedding that were trained, (n, embd), and which they are."""

    rows: StoredTensor
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Adapter:
    """An adapter, headers only.

    path:    of the tensors. updates: in the order of the file.
    trained: whole tensors that take the place of the base's, by the base's name.
    copies:  the base's own tensors as they were when it was trained (the vocabulary may have grown), likewise.
    tokens:  rows of embeddings that take the place of the base's, likewise.
    notes:   what of it is left out, and why.
    """

    folder: Path
    path: Path
    config: Config
    updates: tuple[Update, ...]
    trained: Mapping[str, StoredTensor]
    copies: Mapping[str, StoredTensor]
    tokens: Mapping[str, Tokens]
    notes: tuple[str, ...] = ()

    @property
    def base(self) -> str | None:
        """What it calls its base model: a path, or an id on the hub."""
        named = self.config.first("base_model_name_or_path")
        return named if isinstance(named, str) and named else None


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model."""
    return (folder / CONFIG).is_file() and lists_adapter(path.name for path in folder.iterdir())


def lists_adapter(names: Iterable[str]) -> bool:
    """The same of the names in a folder."""
    names = list(names)
    models = ("model*.safetensors", "pytorch_model*.bin")
    return CONFIG in names and not any(fnmatchcase(name, model) for name in names for model in models)


def open_adapter(folder: Path) -> Adapter:
    """Read its configuration and headers.

    Malformed: files that are missing or damaged, updates that are incomplete or do not fit together.
    Unsupported: another method than LoRA, or a variant of it whose tensors mean something else.
    """
    if not folder.is_dir():
        raise Usage("there is no such folder", where=folder, fix="Pass the folder of a PEFT adapter.")
    if not (folder / CONFIG).is_file():
        raise Malformed(f"there is no {CONFIG}, so this is not a PEFT adapter", where=folder)
    config = Config(read_object(folder / CONFIG, inside=folder), folder / CONFIG)
    _check_config(config)
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise Malformed(f"there is no {WEIGHTS[0]}", where=folder, fix="Download the adapter again.")
    modules: dict[str, dict[str, StoredTensor]] = {}
    trained: dict[str, StoredTensor] = {}
    copies: dict[str, StoredTensor] = {}
    tokens: dict[str, StoredTensor] = {}
    for source in read_tensors(contained(folder, path)):
        name = without_wrappers(source.name).removeprefix("module.").removeprefix(PREFIX)
        if part := PART.fullmatch(name):
            place, key = modules.setdefault(part["module"], {}), part["role"]
        elif part := BIAS.fullmatch(name):
            place, key = modules.setdefault(part["module"], {}), "bias"
        elif part := TOKENS.fullmatch(name):
            place, key = tokens, part["module"]
        elif ".lora_" in name:
            raise Unsupported(f"tensor {source.name!r} does not belong to any known kind of LoRA", where=path)
        elif name.endswith(".base_layer.weight"):
            place, key = copies, re.sub(r"(\.token_adapter)?\.base_layer\.", ".", name)
        else:
            place, key = trained, re.sub(r"\.base_layer|\.modules_to_save(\.default)?", "", name)
        if key in place:
            raise Malformed(f"{source.name} and {place[key].name} are the same", where=path, fix="Keep one of them.")
        place[key] = source
    updates = tuple(_update(module, parts, config, path) for module, parts in modules.items())
    if not updates and not trained and not tokens:
        raise Malformed("it holds no tensors", where=path, fix="Download the adapter again.")
    if config.first("trainable_token_indices") and not tokens:
        raise Malformed("trainable_token_indices is set, but the adapter holds no trained rows", where=path)
    rows = {f"{module}.weight": Tokens(source, _ids(module, source, config)) for module, source in tokens.items()}
    return Adapter(folder, path, config, updates, trained, copies, rows)


def _check_config(config: Config) -> None:
    method = config.first("peft_type")
    if method != "LORA":
        raise Unsupported(
            f"peft_type {method!r} is not supported; only LORA is",
            where=config.path,
            fix=BY_PEFT,
        )
    for key, meaning in OTHER_MEANINGS.items():
        if config.first(key):
            raise Unsupported(
                f"{key} is set: {meaning}, which is not supported",
                where=config.path,
                fix=BY_PEFT,
            )
    start = config.first("init_lora_weights")
    if isinstance(start, str) and start.startswith(REWRITES_BASE):
        raise Unsupported(
            f"init_lora_weights is {start!r}: this adapter belongs to a base whose weights were changed with it",
            where=config.path,
            fix=f"Save it again with save_pretrained(..., path_initial_model_for_weight_conversion=...). Or: {BY_PEFT}",
        )


def without_dropped(adapter: Adapter, record: Architecture, taken: Callable[[str], bool] | None = None) -> Adapter:
    """The adapter without what changes parts of the base that are not converted, such as its vision encoder.

    taken: whether a tensor is in another file that is made. Unsupported if nothing is left.
    """

    def why(name: str) -> str | None:
        return None if taken and taken(name) else record.why_dropped(name)

    def stays(name: str) -> bool:
        return why(name) is None

    updates = tuple(update for update in adapter.updates if stays(update.target))
    trained, copies = ({n: t for n, t in each.items() if stays(n)} for each in (adapter.trained, adapter.copies))
    tokens = {name: rows for name, rows in adapter.tokens.items() if stays(name)}
    before = [*(update.target for update in adapter.updates), *adapter.trained, *adapter.tokens]
    dropped = Counter(reason for name in before if (reason := why(name)) is not None)
    if dropped and not updates and not trained and not tokens:
        raise Unsupported(
            f"everything that it trains is left out of the model: {', '.join(dropped)}",
            where=adapter.folder,
            fix="Convert the base without it.",
        )
    notes = tuple(
        f"{adapter.folder.name}: {count} of its changes dropped: {reason}" for reason, count in dropped.items()
    )
    return replace(adapter, updates=updates, trained=trained, copies=copies, tokens=tokens, notes=notes)


def _update(module: str, parts: Mapping[str, StoredTensor], config: Config, path: Path) -> Update:
    embedding = any(role.startswith("lora_embedding") for role in parts)
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    for role in names:
        if role not in parts:
            raise Malformed(f"{module} has no {role}", where=path, fix="Download the adapter again.")
    down, up = parts[names[0]], parts[names[1]]
    for source in parts.values():
        if source.dtype not in DTYPES:
            raise Unsupported(f"{source.name} is {source.dtype}; {', '.join(DTYPES)} are supported", where=path)
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        raise Malformed(f"{module}: A {list(down.shape)} and B {list(up.shape)} do not fit together", where=path)
    magnitude = parts.get("lora_magnitude_vector")
    if magnitude is None and config.first("use_dora"):
        raise Malformed(f"{module} has no lora_magnitude_vector, but use_dora is set", where=path)
    if magnitude is not None and math.prod(magnitude.shape) != up.shape[0]:
        raise Malformed(f"{module}: {list(magnitude.shape)} lengths for {up.shape[0]}", where=path)
    bias = parts.get("bias")
    if bias is None and config.first("lora_bias"):
        raise Malformed(f"{module} has no lora_B.bias, but lora_bias is set", where=path)
    if bias is not None and bias.shape != up.shape[:1]:
        raise Malformed(f"{module}: a bias of {list(bias.shape)} for {up.shape[0]} rows", where=path)
    rank = down.shape[0]
    scale = _alpha(module, config) / (math.sqrt(rank) if config.first("use_rslora") else rank)
    return Update(f"{module}.weight", down, up, scale, embedding, magnitude, bias)


def _ids(module: str, rows: StoredTensor, config: Config) -> tuple[int, ...]:
    """Which rows of an embedding these are: the setting lists them, for all modules or by the ends of their names.

    A head that shares the embedding's weights has its rows.
    """
    stated = config.first("trainable_token_indices")
    if isinstance(stated, Mapping):
        named = [ids for name, ids in stated.items() if f".{module}".endswith(f".{name}")] or list(stated.values())
        stated = named[0] if len(named) == 1 else None
    ids = tuple(stated) if isinstance(stated, list) else ()
    if not ids or not all(type(n) is int and n >= 0 for n in ids) or len(set(ids)) != len(ids):
        raise Malformed(f"trainable_token_indices does not say which rows of {module} are trained", where=config.path)
    if rows.dtype not in DTYPES or len(rows.shape) != 2 or rows.shape[0] != len(ids):
        raise Malformed(f"{rows.name} is {rows.dtype} {list(rows.shape)}, but {len(ids)} rows are expected")
    return ids


def _alpha(module: str, config: Config) -> float:
    """lora_alpha, or what the first pattern that the module's name ends with says instead."""
    for pattern, alpha in config.mapping("alpha_pattern").items():
        if _matches(pattern, module, config.path):
            return as_number(alpha, f"alpha_pattern {pattern!r}", config.path)
    alpha = config.number("lora_alpha", default=8.0)
    return 8.0 if alpha is None else alpha


def _matches(pattern: str, module: str, path: Path) -> bool:
    """Whether the pattern, a regular expression, is the name or the end of it, from a point on."""
    if len(pattern) > MAX_PATTERN or len(module) > MAX_NAME or len(re.findall(r"[*+{]", pattern)) > MAX_REPEATS:
        raise Unsupported(
            f"alpha_pattern {pattern!r} is too complex", where=path, fix="Write out the names that it should match."
        )
    try:
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error as error:
        raise Malformed(f"alpha_pattern {pattern!r} is not a valid regular expression: {error}", where=path) from None


def apart(update: Update, folder: Path) -> Update:
    """The same update, its tensors named so that those of several adapters, and of the base, never mix."""

    def named(source: StoredTensor) -> StoredTensor:
        return replace(source, name=f"{folder}: {source.name}")

    magnitude, bias = update.magnitude and named(update.magnitude), update.bias and named(update.bias)
    return replace(update, down=named(update.down), up=named(update.up), magnitude=magnitude, bias=bias)
