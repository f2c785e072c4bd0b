"""HTTP GET of byte ranges: keep-alive connections, redirects, retries, and nothing taken on trust.

The standard library's client reads from the socket straight into the caller's buffer, which is what makes a fast
network, or a local mirror, fast.
"""

import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from ggufsmith.container.errors import Failure, Malformed, Unsupported

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 6  # in a row without a byte more
REDIRECTS = 10
MAX_ERROR = 1 << 16  # bytes of the page that explains an error
LONGEST_WAIT = 300.0  # seconds that a busy server may ask us to wait
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
MOVED = frozenset({301, 302, 303, 307, 308})
REFUSED = frozenset({401, 403, 404, 410})  # what a signed address answers when its time is over
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")


def retry_after(text: str | None, default: float) -> float:
    """Seconds that a Retry-After header asks to wait, as a number or as a date (RFC 9110, 10.2.3)."""
    if text and re.fullmatch(r" *[0-9]+ *", text):
        return float(text)  # infinite, if there are more digits than a float can hold
    try:
        return max(parsedate_to_datetime(text or "").timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError, OSError, IndexError):
        return default


@dataclass
class Remote:
    """A file on a server.

    headers:  for the host of `url` only, such as the authorization.
    size:     bytes.
    location: where redirects led the last time.
    etag:     of the first answer from there. Later ones must have the same.
    """

    url: str
    headers: Mapping[str, str]
    size: int
    location: str | None = None
    etag: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


class Ranges:
    """Reads ranges of remote files over connections of its own: one object per thread.

    stop: ends waiting. pause: seconds before the second attempt; later ones wait twice as long each time.
    """

    def __init__(self, stop: threading.Event | None = None, pause: float = 0.5) -> None:
        self._stop, self._pause = stop or threading.Event(), pause
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def read(self, remote: Remote, start: int, buffer: memoryview) -> None:
        """Fill `buffer` from byte `start` of the file on. What was cut short goes on where it stopped.

        Malformed: the file has changed, or not as long as it was said to be. Unsupported: the server has no
        ranges. Failure: it refuses, or cannot be reached.
        """
        done, failed, renewed = 0, 0, False
        while done < len(buffer):
            wait, problem = 0.0, ""
            try:
                response = self._ask(remote, start + done, start + len(buffer))
                if response.status == 206:
                    _check(remote, response, start + done, start + len(buffer))
                    more = _receive(response, buffer[done:])
                    done, failed = done + more, 0 if more else failed
                    problem = "the connection ended too early"
                else:
                    self._drain(response)
                    problem = f"the server answered {response.status} {response.reason}"
                    if response.status in REFUSED and remote.location and not renewed:
                        remote.location, renewed = None, True  # signed addresses expire: have a new one made
                        continue
                    if response.status not in BUSY:
                        raise _refusal(remote, response.status, problem)
                    wait = retry_after(response.headers.get("Retry-After"), default=0.0)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.close()
                problem = f"{str(error) or type(error).__name__:.200}"
                if not isinstance(error, OSError) and isinstance(error, ValueError | http.client.InvalidURL):
                    what = f"the server redirects to an address that cannot be used: {problem}"
                    raise Failure(what, where=_shown(remote.url), fix="Try again later.") from error
            if done == len(buffer):
                return
            failed += 1
            wait = max(wait, self._pause * 2.0 ** (failed - 1))
            if failed == ATTEMPTS or wait > LONGEST_WAIT or self._stop.wait(wait):
                raise Failure(f"{problem}, after {failed} attempts", where=_shown(remote.url), fix="Try again later.")

    def close(self) -> None:
        """Close all connections."""
        while self._connections:
            self._connections.popitem()[1].close()

    def abort(self) -> None:
        """Wake the thread that reads, from another one."""
        for connection in list(self._connections.values()):
            with suppress(OSError, AttributeError):  # it is not connected, or no longer
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, remote: Remote, first: int, end: int) -> http.client.HTTPResponse:
        """The answer to a range, redirects followed. Headers that prove who we are go to the first host only."""
        home, url = urlsplit(remote.url), remote.location or remote.url
        for _ in range(REDIRECTS):
            parts = urlsplit(url)
            headers = {"Range": f"bytes={first}-{end - 1}", "Accept-Encoding": "identity"}
            if (parts.scheme, parts.netloc) == (home.scheme, home.netloc):
                headers = {**remote.headers, **headers}
            response = self._get(parts, headers)
            if response.status not in MOVED:
                remote.location = url if url != remote.url else None
                return response
            self._drain(response)
            target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(target).scheme not in ("https", home.scheme):
                what = f"the server redirects to {_shown(target):.200}, which is not a safe address"
                raise Failure(what, where=_shown(remote.url))
            url = target
        raise Failure(f"more than {REDIRECTS} redirects", where=_shown(remote.url))

    def _get(self, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """One request, once more if the server had closed a connection that was kept."""
        key = (parts.scheme, parts.netloc)
        while True:
            kept = self._connections.get(key)
            connection = kept or self._connections.setdefault(key, _connect(parts))
            target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
            try:
                connection.request("GET", _target(parts, target), headers=dict(headers))
                return connection.getresponse()
            except (OSError, http.client.HTTPException):
                self._connections.pop(key).close()
                if kept is None:
                    raise

    def _drain(self, response: http.client.HTTPResponse) -> None:
        """Read what little an error or a redirect says, so that its connection can be kept."""
        response.read(MAX_ERROR)
        if not response.isclosed():
            self.close()


def _receive(response: http.client.HTTPResponse, buffer: memoryview) -> int:
    """Bytes received until the buffer is full or the answer ends."""
    done = 0
    try:
        while done < len(buffer):
            more = response.readinto(buffer[done:])
            if not more:
                break
            done += more
    except (OSError, http.client.HTTPException):
        if not done:
            raise
    return done


def _check(remote: Remote, response: http.client.HTTPResponse, first: int, end: int) -> None:
    """The answer is the range that was asked for, of the file that it was when it was first read."""
    header, where = response.headers.get("Content-Range", ""), _shown(remote.url)
    found = CONTENT_RANGE.fullmatch(header)
    if not found or (int(found[1]), int(found[2])) != (first, end - 1):
        raise Malformed(f"bytes {first}-{end - 1} were requested, but the server sent {header!r:.80}", where=where)
    if int(found[3]) != remote.size:
        raise Malformed(
            f"{remote.size} bytes were expected, but the server has {found[3]}", where=where, fix="Try again."
        )
    etag = response.headers.get("ETag")
    with remote.lock:
        remote.etag = remote.etag or etag
        if etag != remote.etag:
            raise Malformed(f"the file changed while it was read: {remote.etag!s:.80} became {etag!s:.80}", where=where)


def _refusal(remote: Remote, status: int, problem: str) -> Failure:
    where = _shown(remote.url)
    if status == 200:
        return Unsupported("the server does not send ranges", where=where, fix="Convert without --stream.")
    if status in (412, 416):
        return Malformed(f"{problem}: the file has changed", where=where, fix="Try again.")
    fix = "Log in, or pass --token." if status in (401, 403) else "Try again later."
    return Failure(problem, where=where, fix=fix)


def _shown(url: str) -> str:
    """Without the query, which may hold a signature."""
    return urlsplit(url)._replace(query="", fragment="").geturl()


# ---- connections ----


@cache
def _trusted() -> ssl.SSLContext:
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
    return ssl.create_default_context(cafile=bundle)


def _proxy(parts: SplitResult) -> SplitResult | None:
    proxy = getproxies().get(parts.scheme)
    return None if not proxy or proxy_bypass(parts.netloc) else urlsplit(proxy)


def _connect(parts: SplitResult) -> http.client.HTTPConnection:
    """A connection to the host, through the system's proxy if there is one for it."""
    proxy = _proxy(parts)
    host = proxy or parts
    name, port = host.hostname or "", host.port
    if parts.scheme == "http":
        return http.client.HTTPConnection(name, port, timeout=TIMEOUT)
    connection = http.client.HTTPSConnection(name, port, timeout=TIMEOUT, context=_trusted())
    if proxy:
        connection.set_tunnel(parts.hostname or "", parts.port)
    return connection


def _target(parts: SplitResult, path: str) -> str:
    """What stands in the request line: a proxy for plain HTTP wants the whole address."""
    return parts.geturl() if parts.scheme == "http" and _proxy(parts) else path
