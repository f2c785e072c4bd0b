"""Places on somebody's machine that got into a model's files where its name, its base or a link should be.

Trainers write what they were given: a Windows path, a share, a snapshot in the hub's cache, a trainer's own checkpoint
folder. None of that belongs into a published file.
"""

import re

# What a path begins with, whatever the system: a root or share, a home, this or the parent folder, a drive, a variable,
# the scheme of local files.
_PATH = re.compile(
    r"[/\\]|~($|[/\\\w-]+([/\\]|$))|\.{1,2}($|[/\\])|[A-Za-z]:([/\\]|\S*$)|\$\{?\w|%\w+%|file:", re.IGNORECASE
)
_INSIDE = re.compile(r"[/\\]\.{1,2}($|[/\\])")  # a/../b
_URL = re.compile(r"(?P<scheme>https?|ssh)://(?P<host>[^/\s]*)", re.IGNORECASE)
_CACHED = re.compile(r"(?:^|[/\\])(?:model|dataset)s--([^/\\]+?)--([^/\\]+)")
# Folders that trainers make, and those that scripts and people make, which say nothing of what is in them.
_RUN = re.compile(r"(checkpoint|ckpt|epoch|iter)[-_]?\d+|global_?step\d+|[0-9a-f]{40}", re.IGNORECASE)
_WORKING = re.compile(
    r"outputs?|out|results?|runs?|saves?|saved_models?|(lora_)?models?|checkpoints?|ckpts?|weights|merged(_model)?|final"
    r"|last|latest|best|base(_model)?|tmp|temp|data|content|home|root|mnt|workspace|scratch|experiments?|snapshots|"
    + _RUN.pattern,
    re.IGNORECASE,
)


def is_path(text: str) -> bool:
    """Whether a text, which may be a sentence, is a path on some machine, or a URL with a password."""
    text = text.strip()
    if url := _URL.match(text):
        user, at, _ = url["host"].rpartition("@")
        return bool(at) and (":" in user or url["scheme"].lower() != "ssh")
    if _PATH.match(text):
        return True
    if re.search(r"\s", text):
        return False
    ends = (text.partition("/")[0], text.rpartition("/")[2]) if "/" in text else ()
    return (
        "\\" in text
        or "://" in text  # storage of one's own
        or _INSIDE.search(text) is not None
        or _CACHED.search(text) is not None
        or any(_WORKING.fullmatch(end) for end in ends)
    )


def is_local(text: str) -> bool:
    """Whether what should be a name or a URL is a path, or the folder of a training run."""
    return is_path(text) or (
        not _URL.match(text.strip())
        and ("\\" in text or _CACHED.search(text) is not None or _RUN.fullmatch(text.strip()) is not None)
    )


def is_id(text: str) -> bool:
    """Whether a text can be a model's name or its id on a hub: neither local, nor a folder such as `output`."""
    text = text.strip()
    return bool(text) and text.count("/") <= 1 and not is_local(text) and not _WORKING.fullmatch(text)


def holds_path(tag: str) -> bool:
    """Whether a tag is a path, or has one behind a prefix, such as `base_model:adapter:./x`."""
    parts = tag.split(":")
    return (
        cached_id(tag) is not None or any(is_local(":".join(parts[at:])) for at in range(1, len(parts))) or is_path(tag)
    )


def cached_id(text: str) -> str | None:
    """ORG/NAME of a path into the hub's cache."""
    match = _CACHED.search(text)
    return f"{match[1]}/{match[2]}" if match else None


def folder_name(path: str) -> str | None:
    """The last part of a path, if it says what is in the folder."""
    last = re.split(r"[/\\]", path.strip().rstrip("/\\"))[-1].strip()
    return last if re.match(r"\w", last) and not re.match("[A-Za-z]:", last) and not _WORKING.fullmatch(last) else None
