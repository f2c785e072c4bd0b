"""Writes golden.json: blocks as ggml itself makes and reads them, for tests that run without it. Prints the known
answers of quantize/selftest.py.

python tests/quantize/golden_make.py            needs the extra `conformance`
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import oracle
import strategies

from ggufsmith.container.formats import BY_NAME
from ggufsmith.quantize import rows, selftest

HERE = Path(__file__).parent
WIDTH = 256


def main() -> None:
    ordinary = strategies.mosaic(11, 1, WIDTH, ["normal"], [-2])
    odd = strategies.mosaic(
        12, 1, WIDTH, ["zeros", "outlier", "ties", "constant", "denormal", "heavy", "alternating"], [-1]
    )
    x = np.concatenate([ordinary, odd])
    importance = strategies.squares(np.random.default_rng(13), WIDTH)
    blocks = {}
    for name in (name for name in BY_NAME if name in rows.MODULES):
        plain = None if name in oracle.NEEDS_IMPORTANCE else oracle.quantize(name, x)
        weighted = oracle.quantize(name, x, importance)
        read = hashlib.sha256(oracle.dequantize(name, weighted).tobytes()).hexdigest()
        blocks[name] = {
            "plain": None if plain is None else [row.tobytes().hex() for row in plain],
            "weighted": [row.tobytes().hex() for row in weighted],
            "sha256 of the weighted blocks' float32": read,
        }
    golden = {
        "source": f"ggml_quantize_chunk and to_float of {oracle.provenance()} on x86-64, by {Path(__file__).name}",
        "rows": [row.tobytes().hex() for row in x],
        "importance": importance.tobytes().hex(),
        "blocks": blocks,
    }
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    for name, answer in known_answers().items():
        print(f'        "{name}": {answer},'.replace("'", '"'))


def known_answers() -> dict[str, tuple[str | None, str | None]]:
    """What `selftest.ANSWERS` must be, from ggml."""
    x, importance = selftest.known_rows(), selftest.known_importance()
    found = {}
    for name in (name for name in BY_NAME if name in rows.MODULES):
        codec = rows.codec_of(BY_NAME[name])
        plain = selftest.digest(oracle.quantize(name, x)) if codec.encode else None
        weighted = selftest.digest(oracle.quantize(name, x, importance)) if codec.weighted else None
        found[name] = plain, weighted
    return found


if __name__ == "__main__":
    main()
