"""What all kernels make of many kinds of rows, as digests, to be compared between architectures.

    python compare.py inputs FILE                       writes what needs a BLAS, whose sums depend on the CPU
    python compare.py digests FILE RESULTS [FORMAT...]  writes a digest of each format's bytes and numbers, as JSON
    python compare.py table RESULTS...                  prints several of these as one table, named after their files

`tools/arm.py` runs it on this machine and on emulated arm64.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ggufsmith.container.formats import BY_NAME, FLOATS
from ggufsmith.quantize import cpu, fields, lattice_fields, rows

ROWS, WIDTH = 9, 768
Arrays = Mapping[str, NDArray[Any]]


def kinds_of_rows() -> dict[str, NDArray[np.float32]]:
    """float32 [ROWS, WIDTH]: ordinary rows, and those in which searches go wrong first."""
    random = np.random.default_rng(7)
    normal = random.standard_normal((ROWS, WIDTH)) * 0.02
    some = np.where(random.random((ROWS, WIDTH)) < 0.3, normal, 0)
    some[0], some[1, :256] = 0, 0
    patterns = random.integers(1 << 32, size=(ROWS, WIDTH), dtype=np.uint64).astype(np.uint32).view(np.float32)
    kinds = {
        "normal": normal,
        "heavy": random.standard_t(2.2, (ROWS, WIDTH)) * 0.03,
        "zeros": some,
        "constant": np.repeat(random.standard_normal((ROWS, WIDTH // 32)), 32, 1),
        "denormal": normal * 1e-41,
        "wide": normal * 10.0 ** random.integers(-30, 30, (ROWS, 1)),
        "hostile": np.where(np.isfinite(patterns) & (np.abs(patterns) < 1e30), patterns, 0),
        "overflow": normal * np.float32(1e9),
    }
    return {name: x.astype(np.float32) for name, x in kinds.items()}


def importances() -> dict[str, NDArray[np.float32]]:
    """float32 [WIDTH]."""
    random = np.random.default_rng(8)
    chi = random.chisquare(3, WIDTH)
    return {"weighted": chi.astype(np.float32), "spiky": np.where(chi > 7, 1e4 * chi, 1e-3).astype(np.float32)}


def digest(parts: Iterator[NDArray[Any]]) -> str:
    """Of all bytes of some arrays."""
    found = hashlib.sha256()
    for part in parts:
        found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()


def of_bits(numbers: NDArray[np.float32]) -> NDArray[np.uint32]:
    """float32 as bits, with one pattern for all that is not a number: its sign is the CPU's choice."""
    return np.where(np.isnan(numbers), np.uint32(0x7FC00000), numbers.view(np.uint32))


def blocks(name: str, mode: str) -> Iterator[NDArray[Any]]:
    """The bytes of all kinds of rows, plain or with importance, and the numbers that are read from them."""
    form = BY_NAME[name]
    for source in (BY_NAME[each] for each in FLOATS):
        for x in kinds_of_rows().values():
            given = np.empty((ROWS, source.nbytes((WIDTH,))), np.uint8)
            rows.encode(source, x, given)
            out = np.zeros((ROWS, form.nbytes((WIDTH,))), np.uint8)
            importance = None if mode == "plain" else importances()[mode]
            rows.encode(form, given.view(source.dtype["x"]), out, source=source, importance=importance)
            yield out
            back = np.empty((ROWS, WIDTH), np.float32)
            rows.decode(form, out, back)
            yield of_bits(back)


def arbitrary(name: str) -> Iterator[NDArray[Any]]:
    """The numbers of blocks of arbitrary bytes."""
    form = BY_NAME[name]
    data = np.random.default_rng(9).integers(256, size=(ROWS, form.nbytes((WIDTH,))), dtype=np.uint8)
    back = np.empty((ROWS, WIDTH), np.float32)
    rows.decode(form, data, back)
    yield of_bits(back)


def plain() -> Iterator[NDArray[Any]]:
    """Conversions between the plain formats, with sums of squares."""
    for x in kinds_of_rows().values():
        yield rows.floats().mean_squares(x)[0][:ROWS]
        for source in (BY_NAME[each] for each in FLOATS):
            given = np.empty((ROWS, source.nbytes((WIDTH,))), np.uint8)
            rows.encode(source, x, given)
            yield given
            for target in (BY_NAME[each] for each in FLOATS):
                out = np.empty((ROWS, target.nbytes((WIDTH,))), np.uint8)
                rows.encode(target, given.view(source.dtype["x"]), out, source=source)
                yield out


def products() -> Iterator[NDArray[Any]]:
    """Low-rank products, norms, and the codes of other quantizers."""
    from ggufsmith.quantize.kernels import codes, products

    random = np.random.default_rng(10)
    left, right, out = (random.standard_normal(n).astype(np.float32) for n in (ROWS * 8, 8 * WIDTH, ROWS * WIDTH))
    products.add_product(left, right, np.float32(0.37), 8, WIDTH, np.empty(WIDTH, np.float32), out)
    yield out
    norms, columns = np.empty(ROWS), np.ones(WIDTH)
    products.row_squares(out, WIDTH, norms)
    products.add_column_squares(out, WIDTH, columns)
    yield from (norms, columns)
    found = np.empty(ROWS * WIDTH, np.uint8)
    codes.nibbles(random.integers(256, size=found.size // 2, dtype=np.uint8), found)
    yield found
    scales, zeros = (random.standard_normal(ROWS * 6).astype(np.float32) for _ in range(2))
    codes.scale_groups(found, scales, zeros, WIDTH, 6, 128, out)
    yield out.copy()
    codes.scale_columns(found, scales, zeros, WIDTH, 6, np.arange(WIDTH, dtype=np.int32) * 7 % 6, out)
    yield out


# ---- descents ----


def inputs() -> dict[str, NDArray[Any]]:
    """Weights under a Hessian, what the descent needs of it, and the gradient at ggml's bytes, of each format."""
    from ggufsmith.calibrate.hessian import prepare
    from ggufsmith.calibrate.tiles import blocks_of

    random = np.random.default_rng(11)
    x = random.standard_normal((700, 40)) @ random.standard_normal((40, 256)) + random.standard_normal((700, 256))
    w = (random.standard_t(6, (ROWS, 256)) * 0.03).astype(np.float32)
    hessian = prepare((x.T @ x / len(x)).astype(np.float32))
    assert hessian.factor
    h = hessian.h + np.diag(hessian.damping)
    found = {"w": w, "h": h, "t": hessian.factor.t}
    for dims in (4, 8):
        found[f"inverse{dims}"] = np.linalg.inv(blocks_of(h, dims)).astype(np.float32)
    for name in (*fields.LAYOUTS, *lattice_fields.LAYOUTS):
        data = np.empty((ROWS, BY_NAME[name].nbytes((256,))), np.uint8)
        rows.encode(BY_NAME[name], w, data, importance=h.diagonal().copy())
        layout = fields.layout_of(name)
        error = w - fields.values(layout, fields.unpack(layout, data))
        found[f"data/{name}"], found[f"g/{name}"] = data, (error @ h).astype(np.float32)
    return found


def descent(name: str, given: Arrays) -> Iterator[NDArray[Any]]:
    """The errors after a descent, and after error feedback."""
    from ggufsmith.calibrate import refine
    from ggufsmith.calibrate.lanes import from_lanes, to_lanes
    from ggufsmith.calibrate.tiles import blocks_of
    from ggufsmith.quantize.kernels import descent, descent_lattice

    layout, w, h = fields.layout_of(name), given["w"], given["h"]
    lattice = isinstance(layout, lattice_fields.LatticeLayout)
    codings: tuple[Any, ...] = (descent.coding_of(layout),)
    if isinstance(layout, lattice_fields.LatticeLayout):
        codings += (descent_lattice.lattice_coding(layout),)
    run = descent_lattice.descend_lattice if lattice else descent.descend
    found = fields.unpack(layout, given[f"data/{name}"])
    state, x, g = refine.to_state(layout, found), to_lanes(w), to_lanes(given[f"g/{name}"])
    e = x - to_lanes(fields.values(layout, found))
    sums = np.ascontiguousarray(h).reshape(-1, layout.sub)
    inverse = given[f"inverse{layout.dims}"] if isinstance(layout, lattice_fields.LatticeLayout) else 1 / h.diagonal()
    flat = [a.reshape(-1).copy() for a in (h, _in_order(sums), inverse, g)]
    run(x.reshape(-1), e.reshape(-1), state, *flat, 256, 0, 256, 3, *codings)
    yield from_lanes(e, ROWS)
    if not lattice:
        return
    metric = blocks_of(h, layout.dims).reshape(-1).copy()  # type: ignore[attr-defined]
    x, e, state = to_lanes(w), np.zeros_like(to_lanes(w)), refine.to_state(layout, found)
    rest = (e.reshape(-1), state, given["t"].reshape(-1), metric, 256, 0, 256, *codings)
    descent_lattice.feed_lattice(x.reshape(-1), to_lanes(w).reshape(-1), *rest)
    yield from_lanes(e, ROWS)


def _in_order(a: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of rows, one number after the other."""
    return np.cumsum(a, axis=1, dtype=np.float32)[:, -1]


def tasks(given: Arrays, names: list[str]) -> Iterator[tuple[str, Callable[[], Iterator[NDArray[Any]]]]]:
    """All that is compared, by name. names: formats and "plain", "products"; all if there are none."""
    for name in names or ["plain", "products", *rows.MODULES]:
        if name in ("plain", "products"):
            yield name, {"plain": plain, "products": products}[name]
            continue
        codec = rows.codec_of(BY_NAME[name])
        modes = ["plain"] * bool(codec.encode) + [*importances()] * bool(codec.weighted)
        for mode in modes:
            yield f"{name} {mode}", lambda name=name, mode=mode: blocks(name, mode)  # type: ignore[misc]
        yield f"{name} of arbitrary bytes", lambda name=name: arbitrary(name)  # type: ignore[misc]
        if f"data/{name}" in given:
            yield f"{name} descent", lambda name=name: descent(name, given)  # type: ignore[misc]


def table(files: list[Path]) -> Iterator[str]:
    """The digests of each format as one, a column for each file, in Markdown."""
    columns = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    yield f"| | {' | '.join(file.stem for file in files)} |"
    yield "|---" * (len(files) + 1) + "|"
    for name in dict.fromkeys(key.split()[0] for key in columns[0]):
        parts = ["".join(found[key] for key in columns[0] if key.split()[0] == name) for found in columns]
        yield f"| {name} | {' | '.join(hashlib.sha256(part.encode()).hexdigest()[:12] for part in parts)} |"


def main() -> None:
    command, file, *rest = sys.argv[1:]
    if command == "table":
        print(*table([Path(file), *map(Path, rest)]), sep="\n")
        return
    if command == "inputs":
        np.savez(file, **inputs())
        return
    results, *names = rest
    with np.load(file) as given, np.errstate(all="ignore"):
        found = {}
        for name, task in tasks(dict(given), names):
            found[name] = digest(task())
            print(f"{cpu.level().name}: {name} {found[name][:16]}", flush=True)
    Path(results).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
