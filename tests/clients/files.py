"""Makes files of every kind that ggufsmith writes, for the clients to read."""

import subprocess
import sys
from pathlib import Path

import adapters
import checkpoints
import seeing
from install import CLIENTS

FILES = CLIENTS / "files"


def smith(*words: str | Path) -> None:
    """Run `ggufsmith`. CalledProcessError if it fails."""
    code = "from ggufsmith.cli.app import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True)


def of_published(original: Path) -> dict[str, Path]:
    """What is made of a published quantized model: its weights in F16 and Q8_0, Q4_0, and Q8_0 in shards."""
    folder = FILES / original.name.removesuffix(".gguf")
    made = {kind: folder / f"{kind}.gguf" for kind in ("f16", "q8_0", "q4_0")}
    shards = folder / "sharded-00001-of-00003.gguf"
    for kind, path in made.items():
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            smith("quant", original, "-r", kind, "-o", path, "--allow-requantize", "--quiet", "--no-sync")
    if not shards.is_file():
        split(made["q8_0"], shards)
    return {**made, "shards": shards}


def split(file: Path, first: Path) -> None:
    """Three shards of a file."""
    from ggufsmith.container.reader import open_gguf

    with open_gguf(file) as opened:
        most = -(-len(opened.tensors) // 3)
    smith("split", file, first.parent / first.name.partition("-0")[0], "--split-max-tensors", str(most))


def every_kind() -> list[Path]:
    """One small file of every recipe, and of everything that is not a model: adapter, vocabulary, projector, matrix."""
    folder = FILES / "kinds"
    if not folder.is_dir():
        partial = folder.with_name(".kinds")
        partial.mkdir(parents=True, exist_ok=True)
        write_kinds(partial)
        partial.rename(folder)
    return sorted(folder.glob("*.gguf"))


def write_kinds(folder: Path) -> None:
    """Into this folder."""
    from ggufsmith.quantize.recipes.files import shipped
    from ggufsmith.quantize.recipes.filetypes import FILE_TYPES

    sources = folder / "sources"
    model = checkpoints.write("qwen2", sources / "Tiny-2M")
    seeing.write(sources / "Sees")
    adapters.write(model, sources / "Tuned")
    recipes = [word for name in (*FILE_TYPES, *shipped()) if name != "COPY" for word in ("-r", name)]
    matrix = sources / "imatrix.gguf"
    write_imatrix(model, matrix)
    common = ("--outdir", folder, "--quiet", "--no-sync")
    smith("convert", model, *recipes, "--imatrix", matrix, *common)
    smith("convert", model, "--vocab-only", *common)
    smith("convert", sources / "Tuned", *common)
    smith("convert", sources / "Sees", "--mmproj", *common)
    (folder / "imatrix.gguf").write_bytes(matrix.read_bytes())


def write_imatrix(model: Path, path: Path) -> None:
    """An importance matrix for a small model: 1 everywhere, for the layout of the file is what matters here."""
    import numpy as np

    from ggufsmith.calibrate.auto import is_weighted, unquantized
    from ggufsmith.convert.open import open_pass
    from ggufsmith.pipeline.request import Request
    from ggufsmith.quantize.imatrix.record import Entry, Imatrix
    from ggufsmith.quantize.imatrix.write import write_imatrix as write

    with open_pass(unquantized(Request(model))) as planned:
        specs = [each for each in planned.outputs[0].shards.whole.tensors if is_weighted(each, "qwen2")]
    entries = {each.name: Entry(np.ones((1, each.shape[-1]), np.float32), np.array([2])) for each in specs}
    write(Imatrix(entries, ("a text",), 1, 512), path)
