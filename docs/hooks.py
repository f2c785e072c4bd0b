"""Hooks of mkdocs: documents that stand outside docs/ are pages of the site too, and links to code are plain text."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "examples/jobs.toml",
    "examples/action.yml",
    "examples/github-actions.yml",
)
LINK = re.compile(r"\[([^]]+)\]\(\.\./([^)#]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what stands outside."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links out of docs/ lead to the pages that `on_files` made; others become the names of files."""
    inside = markdown.replace("](docs/", "](") if page.file.src_uri in OUTSIDE else markdown

    def shown(link: re.Match[str]) -> str:
        text, path = link.groups()
        return f"[{text}]({path})" if path in OUTSIDE else f"`{path}`"

    return LINK.sub(shown, inside)
