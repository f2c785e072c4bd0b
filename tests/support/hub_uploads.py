"""What the hub on the loopback does with uploads: repositories made, large files sent, commits. See `hub_server`."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MADE = "89abcdef0123456789abcdef0123456789abcdef"  # every commit's name


@dataclass
class Uploads:
    """Large files that were sent, by their SHA-256, and commits: the places of their files.

    received: bytes of large files, sent twice or not. private: repositories that were made so.
    """

    large: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    received: int = 0
    private: set[str] = field(default_factory=set)


def take(server: Any, method: str, path: str, body: bytes, limit: int) -> tuple[int, Any]:
    """Status and JSON of the answer to one request. limit: bytes from which on a file is large."""
    if method == "PUT" and (found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path)):
        server.uploads.received += len(body)
        if hashlib.sha256(body).hexdigest() != found[1]:
            return 422, {"error": "the content has another hash"}
        server.uploads.large[found[1]] = body
        return 200, {}
    asked = json.loads(body) if body and not path.endswith("/commit/main") else {}
    if path == "/api/validate-yaml":
        return 200, {"errors": [], "warnings": []}
    if path == "/lfs/verify":
        return (200, {}) if asked["oid"] in server.uploads.large else (404, {})
    if path == "/api/repos/create":
        return _create(server, asked)
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
        return _preupload(server, found[1], asked, limit)
    if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
        return 200, {"transfer": "basic", "objects": [_large(server, each) for each in asked["objects"]]}
    if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
        return _commit(server, found[1], body)
    return 404, {}


def _create(server: Any, asked: dict[str, Any]) -> tuple[int, Any]:
    name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
    if (server.root / name).exists():
        return 409, {"error": "You already created this model repo", "url": f"{server.url}/{name}"}
    (server.root / name).mkdir(parents=True)
    if asked.get("private") or asked.get("visibility") == "private":
        server.uploads.private.add(name)
    return 200, {"url": f"{server.url}/{name}"}


def _preupload(server: Any, name: str, asked: dict[str, Any], limit: int) -> tuple[int, Any]:
    if not (server.root / name).is_dir():
        return 404, {"error": "Repository not found"}
    files = [
        {
            "path": each["path"],
            "uploadMode": "lfs" if each["size"] > limit else "regular",
            "shouldIgnore": False,
            "oid": None,
        }
        for each in asked["files"]
    ]
    return 200, {"files": files}


def _large(server: Any, asked: dict[str, Any]) -> dict[str, Any]:
    answer = {"oid": asked["oid"], "size": asked["size"]}
    if asked["oid"] in server.uploads.large:
        return answer
    upload, verify = ({"href": f"{server.url}/lfs/{place}"} for place in (asked["oid"], "verify"))
    return {**answer, "actions": {"upload": upload, "verify": verify}}


def _commit(server: Any, name: str, body: bytes) -> tuple[int, Any]:
    lines = [json.loads(line) for line in body.splitlines() if line]
    folder: Path = server.root / name
    if not folder.is_dir():
        return 404, {"error": "Repository not found"}
    places = []
    for line in lines:
        value = line["value"]
        if line["key"] not in ("file", "lfsFile"):
            assert line["key"] == "header", "nothing else may be asked for, and nothing be deleted"
            continue
        content = base64.b64decode(value["content"]) if line["key"] == "file" else server.uploads.large[value["oid"]]
        path = folder / value["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        server.hashes.pop(path, None)
        places.append(value["path"])
    server.uploads.commits.append(places)
    return 200, {
        "success": True,
        "commitOid": MADE,
        "commitUrl": f"{server.url}/{name}/commit/{MADE}",
        "pullRequestUrl": None,
    }
