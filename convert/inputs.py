"""The files that decide an output's bytes, by names that do not say where they stand.

One list for all who ask whether something is still the same, or was made from the same: `--resume` (as `inputs` of
`pipeline.outputs.write_outputs`), provenance records and batch jobs.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from ggufsmith.container.shards import SHARD, SUFFIX

# Everything but the weights that is read while converting, in any spelling of a checkpoint.
COMPANIONS = """
    config.json generation_config.json params.json README.md adapter_config.json
    preprocessor_config.json processor_config.json mask_embedding.pt
    quantize_config.json quant_config.json hf_quant_config.json
    tokenizer.json tokenizer_config.json tokenizer.model tokenizer.model.v* tekken.json special_tokens_map.json
    added_tokens.json vocab.json merges.txt qwen.tiktoken tiktoken.model hy.tiktoken
    modules.json *_Pooling/config.json *_Dense/config.json sentencepiece.bpe.model spiece.model vocab.txt
    chat_template.json chat_template.jinja additional_chat_templates/*.jinja
    *.safetensors.index*.json pytorch_model*.bin.index*.json
""".split()

# The weights of a checkpoint, of any program. Models that are GGUF files are nobody's input in such a folder.
WEIGHTS = "*.safetensors *.bin *.pt *.pth *.ckpt *.h5 *.msgpack".split()


def is_companion(name: str) -> bool:
    """Whether a file of this name, relative to the model's folder, with slashes, is one of COMPANIONS."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in COMPANIONS)


def companions(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, path) of the small files of a model's, an adapter's or a tokenizer's folder that a conversion may read."""
    found = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
    named = ((path.relative_to(folder).as_posix(), path) for path in found)
    yield from sorted(pair for pair in named if is_companion(pair[0]))


def files_of(path: Path) -> Iterator[Path]:
    """What no run may replace that is told to read `path`: the file, with the other shards of its set; of a folder,
    its `companions` and all weights, those that are not read included.
    """
    if path.is_dir():
        yield from (file for _, file in companions(path))
        yield from (file for pattern in WEIGHTS for file in sorted(path.glob(pattern)))
        return
    yield path
    stem = path.name.removesuffix(SUFFIX)
    if SHARD.search(stem):
        whole = SHARD.sub("", stem)
        yield from (file for file in path.parent.glob(f"*{SUFFIX}") if SHARD.sub("", file.stem) == whole)


def input_files(
    weights: Iterable[Path], folders: Mapping[str, Path], files: Mapping[str, Path | None]
) -> dict[str, Path]:
    """All inputs of a conversion, by the names that records give them. No file is given twice.

    weights: the files that hold tensors (`Checkpoint.files`).
    folders: whose small files are read, by what they are: "" for the model, "base", "tokenizer", "lora-1", …; their
             files are called so, as in "lora-1/adapter_config.json".
    files:   single ones, by what they are: {"imatrix": …, "metadata": …}; None is left out.
    """
    found: dict[str, Path] = {}
    known: set[Path] = set()

    def add(name: str, path: Path) -> None:
        if path.absolute() not in known:
            known.add(path.absolute())
            number = sum(name == other or other.startswith(f"{name} (") for other in found)
            found[f"{name} ({number + 1})" if number else name] = path

    for path in weights:
        role, home = next((pair for pair in folders.items() if path.is_relative_to(pair[1])), ("", path.parent))
        add(_called(role, path.relative_to(home).as_posix()), path)
    for role, folder in folders.items():
        for name, path in companions(folder):
            add(_called(role, name), path)
    for role, single in files.items():
        if single is not None:
            add(_called(role, single.name), single)
    return found


def _called(role: str, name: str) -> str:
    return f"{role}/{name}" if role else name
