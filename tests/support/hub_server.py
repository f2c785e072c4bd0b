"""A hub on the loopback: enough of the APIs of Hugging Face and ModelScope to list and fetch models, and to misbehave.

Large files are redirected to another host name, as the real hubs redirect to their storage. Faults are queued per
request path; each is used once, or for ever.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_uploads import Uploads, take

MODEL = "org/Tiny-1B"  # what the tests mostly ask for
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000  # bytes; larger files go to large-file storage


@dataclass(frozen=True)
class Fault:
    """What goes wrong with requests whose path matches.

    path:    a regular expression. times: how often; None is always.
    status:  answer so, with these headers and this body. cut: send so many bytes of the body, then hang up.
    flip:    invert the byte at this place of the file. pause: seconds before the answer. etag: say this one.
    plain:   ignore Range. drop: hang up.
    """

    path: str
    times: int | None = 1
    methods: str = "GET"
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: int | None = None
    flip: int | None = None
    pause: float = 0
    etag: str | None = None
    plain: bool = False
    drop: bool = False


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    token: str | None
    host: str


class Hub(ThreadingHTTPServer):
    """Serves the models under `root`: root/org/name/files."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.faults: list[Fault] = []
        self.used: dict[int, int] = {}
        self.requests: list[Request] = []
        self.token: str | None = None
        self.readers: set[str] = set()  # tokens that may not write
        self.uploads = Uploads()
        self.hashes: dict[Path, tuple[str, str]] = {}
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for number, fault in enumerate(self.faults):
                used = self.used.get(number, 0)
                if method in fault.methods.split() and re.search(fault.path, path) and used != fault.times:
                    self.used[number] = used + 1
                    return fault
        return None

    def digests(self, path: Path) -> tuple[str, str]:
        """(SHA-256, git's id) of a file."""
        if path not in self.hashes:
            large, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
            with path.open("rb") as file:
                while piece := file.read(1 << 20):
                    large.update(piece)
                    git.update(piece)
            self.hashes[path] = large.hexdigest(), git.hexdigest()
        return self.hashes[path]

    def files(self, model: str) -> Iterator[tuple[str, Path]]:
        folder = self.root / model
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        """An upload. cut of a fault: read so many bytes, then hang up."""
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.requests.append(Request(self.command, path, None, token, self.headers["Host"].split(":")[0]))
        fault = self.server.fault(self.command, path) or Fault(path)
        size = int(self.headers.get("Content-Length") or 0)
        if fault.cut is not None or fault.drop:
            self.rfile.read(min(fault.cut or 0, size))
            self.close_connection = True
            return
        body = self.rfile.read(size) if "Content-Length" in self.headers else self._chunked()
        signed = path.startswith("/lfs/")  # by its address
        if fault.status:
            self._send(fault.status, fault.headers, fault.body)
        elif self.server.token not in (None, token) and token not in self.server.readers and not signed:
            self._send(401, {}, b'{"error": "Invalid credentials"}')
        elif token in self.server.readers and not signed:
            self._send(403, {}, b'{"error": "You do not have the required permissions"}')
        else:
            status, answer = take(self.server, self.command, path, body, LARGE)
            headers = {"X-Error-Code": "RepoNotFound"} if status == 404 else {}
            self._send(status, {"Content-Type": "application/json", **headers}, json.dumps(answer).encode())

    def _chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, body: bool) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.server.requests.append(
            Request(self.command, path, self.headers.get("Range"), token, self.headers["Host"].split(":")[0])
        )
        fault = self.server.fault(self.command, path) or Fault(path)
        time.sleep(fault.pause)
        if fault.drop:
            self.close_connection = True
        elif fault.status:
            self._send(fault.status, fault.headers, fault.body if body else None)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(found[1], found[2] or "main", token)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(?:main|[0-9a-f]{40})/?(.*)", path):
            self._tree(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(self.server.root / found[1] / found[3], body, fault)
        elif found := re.fullmatch(r"/cdn/(.+)", path):
            self._file(self.server.root / found[1], body, fault, {})
        elif found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo/files", path):
            self._modelscope_listing(found[1], parse_qs(parts.query).get("Revision", ["master"])[0])
        elif found := re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo", path):
            self._file(self.server.root / found[1] / parse_qs(parts.query)["FilePath"][0], body, fault, {})
        else:
            self._send(404, {}, b"{}")

    def _listing(self, model: str, revision: str, token: str | None) -> None:
        if not (self.server.root / model).is_dir():
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}')
        elif revision not in ("main", COMMIT):
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "Invalid rev id"}')
        elif self.server.token not in (None, token):
            self._send(401, {"X-Error-Code": "GatedRepo"}, b'{"error": "Access to the model is restricted"}')
        else:
            siblings = []
            for name, path in self.server.files(model):
                large, git = self.server.digests(path)
                size = path.stat().st_size
                lfs = {"lfs": {"size": size, "sha256": large, "pointerSize": 134}} if size > LARGE else {}
                siblings.append({"rfilename": name, "size": size, "blobId": git, **lfs})
            self._json({"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings})

    def _tree(self, model: str) -> None:
        """All files, at any depth."""
        entries = []
        for name, path in self.server.files(model):
            large, git = self.server.digests(path)
            size = path.stat().st_size
            lfs = {"lfs": {"oid": large, "size": size, "pointerSize": 134}} if size > LARGE else {}
            entries.append({"type": "file", "oid": git, "size": size, "path": name, **lfs})
        self._json(entries)

    def _modelscope_listing(self, model: str, revision: str) -> None:
        if not (self.server.root / model).is_dir() or revision != "master":
            self._send(404, {}, b'{"Code": 10010205001, "Message": "not found", "Success": false}')
            return
        files = [
            {"Path": name, "Size": path.stat().st_size, "Sha256": self.server.digests(path)[0], "Type": "blob"}
            for name, path in self.server.files(model)
        ]
        self._json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def _resolve(self, path: Path, body: bool, fault: Fault) -> None:
        if not path.is_file():
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"" if body else None)
            return
        large, git = self.server.digests(path)
        size = path.stat().st_size
        headers = {"X-Repo-Commit": COMMIT}
        if size <= LARGE:
            self._file(path, body, fault, headers, f'"{git}"')
            return
        place = path.relative_to(self.server.root).as_posix()
        headers |= {
            "X-Linked-Size": str(size),
            "X-Linked-Etag": f'"{large}"',
            "Location": f"http://localhost:{self.server.server_port}/cdn/{place}?signature=secret",
        }
        self._send(302, headers, b"" if body else None)

    def _file(self, path: Path, body: bool, fault: Fault, headers: dict[str, str], etag: str | None = None) -> None:
        size = path.stat().st_size
        first, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked and not fault.plain:
            first, end, status = int(asked[1]), min(int(asked[2] or size - 1) + 1, size), 206
            headers = {**headers, "Content-Range": f"bytes {first}-{end - 1}/{size}"}
        headers = {
            "ETag": fault.etag or etag or f'"{self.server.digests(path)[0]}"',
            "Accept-Ranges": "bytes",
            **headers,
        }
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(end - first)}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        with path.open("rb") as file:
            if fault.flip is not None:
                data = bytearray(file.read())
                data[fault.flip] ^= 0xFF
                self.wfile.write(data[first:end])
            else:
                count = end - first if fault.cut is None else min(fault.cut, end - first)
                if count:
                    self.connection.sendfile(file, first, count)
        if fault.cut is not None:
            self.close_connection = True

    def _json(self, body: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes | None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body or b""))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(body)


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    with Hub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


if __name__ == "__main__":  # for benchmarks: a hub in a process of its own prints its address
    import sys

    with Hub(Path(sys.argv[1])) as hub:
        print(hub.url, flush=True)
        hub.serve_forever()
