"""Which tensors of a checkpoint are quantized: the config says, the tensors must agree, nothing is guessed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from ggufsmith.container.errors import Malformed, Unsupported
from ggufsmith.container.text import nearest
from ggufsmith.container.untrusted import read_object
from ggufsmith.convert.config import Config
from ggufsmith.convert.dequantize.awq import AWQ_GEMM, AWQ_GEMV
from ggufsmith.convert.dequantize.bitnet import BITNET
from ggufsmith.convert.dequantize.bitsandbytes import BNB_4BIT, BNB_8BIT
from ggufsmith.convert.dequantize.compressed import PACK_QUANTIZED
from ggufsmith.convert.dequantize.fp8_int8 import FP8, INT8
from ggufsmith.convert.dequantize.gptq import GPTQ
from ggufsmith.convert.dequantize.hqq import HQQ
from ggufsmith.convert.dequantize.mlx import MLX
from ggufsmith.convert.dequantize.mxfp4 import MXFP4, MXFP4_PACKED, MXFP4_SIGNED
from ggufsmith.convert.dequantize.narrowed import narrowed
from ggufsmith.convert.dequantize.nvfp4 import NVFP4, NVFP4_PACKED
from ggufsmith.convert.dequantize.scheme import ORIGINAL, DequantizedTensor, Parts, Scheme, SchemeInputs, SchemeSettings
from ggufsmith.convert.dequantize.store import Store
from ggufsmith.convert.stored import Checkpoint, StoredTensor

SCHEMES: tuple[Scheme, ...] = (
    *(GPTQ, AWQ_GEMM, AWQ_GEMV, BNB_4BIT, BNB_8BIT, FP8),
    *(PACK_QUANTIZED, INT8, MXFP4_PACKED, MXFP4, MXFP4_SIGNED, NVFP4_PACKED, NVFP4, BITNET, HQQ, MLX),
)
# Ends of names that only a quantized weight has.
NAMED = tuple({end for scheme in SCHEMES if scheme.dense != "{main}" for end in scheme.main})
METHODS = tuple(dict.fromkeys(method for scheme in SCHEMES for method in scheme.methods))
# The last parts of the names of companions: a tensor so named that is left over is part of something quantized.
COMPANIONS = frozenset(
    end.format(main=main).rpartition(".")[2]
    for scheme in SCHEMES
    for main in scheme.main
    for end in (*sum(scheme.companions.values(), ()), *scheme.unused, *((main,) if main != ".weight" else ()))
) | {"zeros", "k_scale", "v_scale"}
# Ends of names of scales that quantized checkpoints may have for the key-value cache; llama.cpp has no use for them.
CACHE = (".k_scale", ".v_scale", ".q_scale", ".prob_scale", ".k_zero_point", ".v_zero_point")
MAX_PROBLEMS = 40
# Where a method's settings stand, besides config.json: file name -> the method it belongs to.
FILES: Mapping[str, str] = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
}


def detect(checkpoint: Checkpoint, config: Config) -> Checkpoint:
    """The checkpoint with every quantized weight as one float32 tensor that is made when it is read.

    Malformed: companions missing or of the wrong shape, schemes that contradict the config or each other.
    Unsupported: a method or a variant that no scheme covers.
    """
    settings, method = _settings(checkpoint.folder, config)
    with checkpoint:
        store = Store(checkpoint)
        found = {source.name: _scheme(source, checkpoint.tensors, method) for source in checkpoint.tensors.values()}
        marked = {name: pair for name, pair in found.items() if pair is not None}
        _one_method(marked, method, settings)
        made, failures = {}, []
        for name, (scheme, parts) in marked.items():
            try:
                made[name] = _made(checkpoint, scheme, SchemeInputs(name, parts, settings, store))
            except (Malformed, Unsupported) as failure:
                failures.append(failure)
    if failures:
        first = failures[0]
        also = [failure.what for failure in failures[1:MAX_PROBLEMS]]
        raise type(first)(first.what, where=first.where, fix=first.fix, also=also)
    used = {part.name for source in made.values() for part in source.parts}
    unused = [name for scheme, parts in marked.values() for name in scheme.unused_by(parts["main"], checkpoint.tensors)]
    if marked:
        unused += [name for name in checkpoint.tensors if name.endswith(CACHE)]
    tensors = {
        source.name: narrowed(source)
        for source in (made.get(name, tensor) for name, tensor in checkpoint.tensors.items())
        if isinstance(source, DequantizedTensor) or (source.name not in used and source.name not in unused)
    }
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *_notes(marked, unused, method)))


def _made(checkpoint: Checkpoint, scheme: Scheme, asked: SchemeInputs) -> DequantizedTensor:
    """One weight. Malformed or Unsupported says why it cannot be made."""
    for role in scheme.required:
        asked.part(role)
    weights, stored = scheme.build(asked), tuple(asked.parts.values())
    dense = scheme.dense_name(asked.main)
    if dense in checkpoint.tensors and dense != asked.name:
        raise asked.wrong(f"{dense} exists as well, so the weight is stored twice")
    size = sum(part.nbytes for part in stored)
    return DequantizedTensor(
        dense, weights.shape, "F32", asked.main.path, 0, size, weights, stored, scheme.exact(weights)
    )


def _settings(folder: Path, config: Config) -> tuple[SchemeSettings, str | None]:
    """The quantization's settings and its method; empty and None where nothing says that there is one."""
    for key in ("quantization_config", "compression_config", "quantization"):
        values = config.mapping(key)
        if values:
            settings = SchemeSettings(values, config.path)
            return settings, _known(settings, settings.first("quant_method"))
    for name, method in FILES.items():
        if (folder / name).is_file():
            settings = SchemeSettings(read_object(folder / name, inside=folder), folder / name)
            return settings, _known(settings, settings.first("quant_method") or method)
    return SchemeSettings({}, config.path), None


def _known(settings: Config, method: object) -> str | None:
    if method is None or method in METHODS:
        return method
    near = next(iter(nearest(str(method), METHODS)), None)
    raise Unsupported(
        f"quant_method {method!r} is not supported{f'; the nearest known one is {near}' if near else ''}",
        where=settings.path,
        also=[f"{scheme.name}: {scheme.note}" for scheme in SCHEMES],
        fix=ORIGINAL,
    )


@cache
def _of_type(dtype: str) -> tuple[Scheme, ...]:
    """The schemes whose main tensor may hold this; a large model has a hundred thousand tensors to ask about."""
    return tuple(scheme for scheme in SCHEMES if dtype in scheme.dtypes)


def _scheme(
    source: StoredTensor, tensors: Mapping[str, StoredTensor], method: str | None
) -> tuple[Scheme, Parts] | None:
    """The scheme of the weight that this tensor marks, if it marks one, with its stored tensors by role.

    A tensor of an ordinary name marks a weight only together with a companion.
    """
    candidates = []
    for scheme in _of_type(source.dtype):
        parts = scheme.parts(source, tensors)
        if parts is None or not scheme.fits(parts):
            continue
        named = scheme.dense != "{main}" or any(role in parts for role in scheme.required)
        if named or method in scheme.methods:
            candidates.append((scheme, parts))
    of_method = [pair for pair in candidates if method in pair[0].methods]
    complete = [pair for pair in candidates if all(role in pair[1] for role in pair[0].required)]
    for choice in (of_method, complete, candidates):
        if len(choice) == 1:
            return choice[0]
        if choice:
            names = " and ".join(scheme.name for scheme, _ in choice)
            raise Malformed(
                f"{source.name} could be {names}",
                where=source.path,
                fix="Add the quantization_config (or quantize_config.json) that says which it is.",
            )
    if source.name.endswith(NAMED):
        near = [scheme for scheme in SCHEMES if scheme.dense != "{main}" and source.name.endswith(scheme.main)]
        raise Unsupported(
            f"{source.name} is {source.dtype} {list(source.shape)}, which is not the layout of any known scheme",
            where=source.path,
            also=[f"{scheme.name} is read as: {scheme.note}" for scheme in near],
            fix=ORIGINAL,
        )
    return None


def _one_method(marked: Mapping[str, tuple[Scheme, Parts]], method: str | None, settings: Config) -> None:
    """Malformed if the weights are of several methods, or of another than the config's."""
    schemes = {scheme.name: (scheme, name) for name, (scheme, _) in marked.items()}
    if method is None:
        common = set.intersection(*(set(scheme.methods) for scheme, _ in schemes.values())) if schemes else {""}
        wrong = list(schemes.values()) if not common else []
    else:
        wrong = [(scheme, name) for scheme, name in schemes.values() if method not in scheme.methods]
    if wrong:
        says = f"the config says {method!r}" if method else "no config says which one applies"
        raise Malformed(
            f"quantization methods are mixed or contradict the config: {says}",
            where=settings.path,
            also=[f"{name} is stored as {scheme.name}" for scheme, name in wrong],
            fix=ORIGINAL,
        )


def _notes(marked: Mapping[str, tuple[Scheme, Parts]], unused: list[str], method: str | None) -> list[str]:
    counts: dict[str, int] = {}
    for scheme, _ in marked.values():
        counts[scheme.name] = counts.get(scheme.name, 0) + 1
    notes = [f"{count} weights are dequantized from {name}" for name, count in counts.items()]
    if method and not marked:
        notes.append(f"the config says that the weights are quantized ({method}), but no tensor is")
    if unused:
        notes.append(f"{len(unused)} tensors dropped: scales of activations or of the cache, such as {unused[0]}")
    return notes


def offers(sources: Iterable[StoredTensor]) -> list[str]:
    """What could be kept as it is."""
    made = (source.exact for source in sources if isinstance(source, DequantizedTensor))
    kept = Counter(exact.format.name for exact in made if exact is not None)
    return [
        f"{count} weights are equivalent to {name}; --recipe copy keeps them exactly" for name, count in kept.items()
    ]


def table() -> list[tuple[str, str, str]]:
    """Rows for the documentation: scheme, the quant_method that announces it, what is supported."""
    return [(scheme.name, ", ".join(scheme.methods), scheme.note) for scheme in SCHEMES]
