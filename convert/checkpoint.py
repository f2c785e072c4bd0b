"""Opens a model folder: its weight files, and the tensors that they hold. Headers only; no weight is read.

safetensors come first; without any, pickled files are read as `pickles` says (see `weightfiles`).

Source: huggingface_hub's cache layout (snapshots/<revision>/x -> blobs/<hash>).
"""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from ggufsmith.container.errors import Malformed, Unsupported, Usage
from ggufsmith.container.untrusted import contained, read_object
from ggufsmith.convert.dequantize.detect import detect
from ggufsmith.convert.mistral import quantization_of, to_hugging_face
from ggufsmith.convert.names import unwrapped
from ggufsmith.convert.original import join
from ggufsmith.convert.params import params_config
from ggufsmith.convert.pickles import read_pickle
from ggufsmith.convert.safetensors_header import read_header
from ggufsmith.convert.stored import Checkpoint, LocalFiles, Opener, StoredTensor
from ggufsmith.convert.weightfiles import MISTRAL, PARAMS, choose_weights


def open_checkpoint(folder: Path, open_files: Opener = LocalFiles) -> Checkpoint:
    """Read every header of the model folder. open_files: how the tensors' bytes will be read.

    Malformed: a missing, truncated or damaged shard, a path that leaves the folder, a tensor found twice.
    Unsupported: a folder without weights that can be read, or torch is missing for pickled ones.
    """
    if not folder.is_dir():
        raise Usage("there is no such folder", where=folder)
    chosen = choose_weights(_names(folder), lambda name: weight_map(folder / name), where=folder)
    listed = chosen.listed
    if chosen.index is not None:
        paths = [_inside(folder, name, folder / chosen.index) for name in chosen.names]
    elif chosen.names:
        paths = [contained(folder, folder / name) for name in chosen.names]
        if paths[0].suffix == ".pth":
            return _open_original(folder, paths, chosen.notes)
    else:
        raise _no_weights(folder)
    tensors: dict[str, StoredTensor] = {}
    extra: list[str] = []
    for path in paths:
        for source in read_tensors(path):
            if listed is not None and listed.get(source.name) != path.name:
                extra.append(source.name)
                continue
            if source.name in tensors:
                raise Malformed(
                    f"tensor {source.name!r} is in {tensors[source.name].path.name} and again in {path.name}",
                    where=folder,
                    fix="Move the file that does not belong to this model out of the folder.",
                )
            tensors[source.name] = source
    if listed is not None:
        missing = sorted(set(listed) - set(tensors))
        if missing:
            raise Malformed(
                f"{len(missing)} tensors are listed but not in their files",
                where=folder / str(chosen.index),
                also=[f"{name} (in {listed[name]})" for name in missing[:10]],
                fix="Download the shards again.",
            )
    notes = list(chosen.notes)
    if extra:
        notes.append(f"{len(extra)} tensors that the index does not list are left out, such as {extra[0]}")
    plain, passed = unwrapped(tensors, folder)
    tensors = {
        plain[name]: source if plain[name] == name else replace(source, name=plain[name])
        for name, source in tensors.items()
    }
    notes += passed
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head and embedding and (head.path, head.offset) == (embedding.path, embedding.offset):  # only pickles can
        del tensors[head.name]
        notes.append("lm_head.weight equals the token embeddings, so it is stored only once")
    if fnmatchcase(paths[0].name, MISTRAL):
        config, open_questions = params_config(folder / PARAMS)
        own = Checkpoint(folder, tensors, (*notes, *open_questions), open_files)
        whole = detect(own, quantization_of(folder / PARAMS))  # first, as its parts have Mistral's names
        return replace(whole, tensors=to_hugging_face(whole.tensors.values(), config))
    return Checkpoint(folder, tensors, tuple(notes), open_files)


def read_tensors(path: Path) -> Iterator[StoredTensor]:
    """The tensors of one file, safetensors or pickled, in its order. Malformed or Unsupported as `open_checkpoint`."""
    return read_header(path) if path.suffix == ".safetensors" else read_pickle(path)


def _open_original(folder: Path, paths: list[Path], notes: tuple[str, ...]) -> Checkpoint:
    """The files of Meta's release, each with a part of every matrix, or the one of Mistral's that has the same name."""
    config, open_questions = params_config(folder / PARAMS)
    return Checkpoint(folder, join([read_pickle(path) for path in paths], config), (*notes, *open_questions))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index has it. Malformed if it is none."""
    listed = read_object(index, inside=index.parent).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise Malformed('"weight_map" must map tensor names to file names', where=index)
    return listed


def _inside(folder: Path, name: str, index: Path) -> Path:
    """The shard `name`, which must be an existing file of the folder (or a link into the hub cache's blobs)."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if len(parts.parts) != 1 or name in ("", ".", "..") or ":" in name or "\0" in name:
        raise Malformed(
            f"shard name {name!r} points outside the model folder",
            where=index,
            fix="Shards must be in the same folder as the index.",
        )
    path = folder / name
    if not path.is_file():
        raise Malformed(f"shard {name!r} is missing", where=folder, fix="Download the missing file.")
    return contained(folder, path)


def _no_weights(folder: Path) -> Malformed | Unsupported:
    """Why there is nothing to read."""
    kinds = {
        MISTRAL: "in Mistral's own layout, but its params.json is missing; use the model.safetensors of the same "
        "repository",
        "adapter_*.safetensors": "a LoRA adapter, not a model; merge it into its base model first",
        "*.bin": "no pytorch_model*.bin",
        "*.pth": "no consolidated.*.pth beside a params.json",
        "*.gguf": "already a GGUF file",
    }
    for pattern, what in kinds.items():
        other = next(iter(sorted(folder.glob(pattern))), None)
        if other is not None:
            return Unsupported(f"no model.safetensors here, and {other.name} is {what}", where=folder)
    return Malformed(
        "there are no *.safetensors files here",
        where=folder,
        fix="Pass the folder that holds config.json and the weights.",
    )
