"""Reading files by ranges over HTTP: whatever the server does, the right bytes or an error, never others."""

import random
import threading
import time
from pathlib import Path

import pytest

import hub_server
from ggufsmith.container.errors import Failure, Malformed, Unsupported
from ggufsmith.convert.hub import ahead
from ggufsmith.convert.hub.ahead import ReadAhead, joined
from ggufsmith.convert.hub.http import Ranges, Remote, retry_after
from hub_server import MODEL, Fault

NAME = f"{MODEL}/model-00001-of-00003.safetensors"
A, B = Path("a"), Path("b")


def remote(hub: hub_server.Hub, **changes: str) -> Remote:
    url = f"{hub.url}/{MODEL}/resolve/main/model-00001-of-00003.safetensors"
    return Remote(**{"url": url, "headers": {"Authorization": "Bearer hf_secret"}, "size": size(hub), **changes})  # type: ignore[arg-type]


def size(hub: hub_server.Hub) -> int:
    return (hub.root / NAME).stat().st_size


def read(file: Remote, start: int = 1000, count: int = 100_000) -> bytes:
    ranges, buffer = Ranges(pause=0.001), bytearray(count)
    try:
        ranges.read(file, start, memoryview(buffer))
    finally:
        ranges.close()
    return bytes(buffer)


def expected(hub: hub_server.Hub, start: int = 1000, count: int = 100_000) -> bytes:
    return (hub.root / NAME).read_bytes()[start : start + count]


def test_bytes_by_a_redirect_that_does_not_see_the_token(hub: hub_server.Hub) -> None:
    file = remote(hub)
    assert read(file) == read(file) == expected(hub)
    assert [request.host for request in hub.requests] == ["127.0.0.1", "localhost", "localhost"]
    assert [request.token for request in hub.requests] == ["hf_secret", None, None]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("cdn", status=503, times=3),
        Fault("cdn", status=429, headers={"Retry-After": "0"}),
        Fault("cdn", drop=True, times=2),
        Fault("resolve", drop=True),
        Fault("resolve", status=500),
        Fault("cdn", pause=0.2),
    ],
    ids=lambda fault: f"{fault.path}-{fault.status or ('drop' if fault.drop else 'slow')}",
)
def test_what_passes_is_waited_for(hub: hub_server.Hub, fault: Fault) -> None:
    hub.faults = [fault]
    assert read(remote(hub)) == expected(hub)


def test_what_was_cut_goes_on_where_it_stopped(hub: hub_server.Hub) -> None:
    hub.faults = [Fault("cdn", cut=30_000, times=3)]
    assert read(remote(hub)) == expected(hub)
    ranges = [request.range for request in hub.requests if request.path.startswith("/cdn")]
    assert ranges == [f"bytes={start}-100999" for start in (1000, 31_000, 61_000, 91_000)]


def test_an_expired_address_is_made_anew(hub: hub_server.Hub) -> None:
    file = remote(hub)
    read(file)
    hub.faults = [Fault("cdn", status=403)]
    assert read(file) == expected(hub)
    assert [request.path.split("/")[1] for request in hub.requests[2:]] == ["cdn", "org", "cdn"]


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (Fault("cdn", status=500, times=None), Failure, "answered 500 .* after 6 attempts"),
        (Fault("cdn", status=503, times=None, headers={"Retry-After": "9999"}), Failure, "after 1 attempts"),
        (Fault("cdn", drop=True, times=None), Failure, "after 6 attempts"),
        (Fault("cdn", cut=0, times=None), Failure, "ended too early"),
        (Fault("cdn", status=403, times=None), Failure, "403"),
        (Fault("cdn", status=404, times=None), Failure, "404"),
        (Fault("cdn", status=416), Malformed, "has changed"),
        (Fault("cdn", plain=True), Unsupported, "does not send ranges"),
        (
            Fault("cdn", status=206, headers={"Content-Range": "bytes 0-99/1000"}),
            Malformed,
            "bytes 1000-100999 were requested",
        ),
        (Fault("cdn", status=206), Malformed, "bytes 1000-100999 were requested"),
        (Fault("cdn", status=206, headers={"Content-Range": f"bytes {'1' * 5000}-2/3"}), Malformed, "were requested"),
        (
            Fault("cdn", status=206, headers={"Content-Range": f"bytes 1000-100999/{'9' * 5000}"}),
            Malformed,
            "were requested",
        ),
        (Fault("cdn", status=206, headers={"Content-Range": "bytes 1000-100999/²"}), Malformed, "were requested"),
        (Fault("cdn", status=503, times=None, headers={"Retry-After": "9" * 5000}), Failure, "after 1 attempts"),
        (
            Fault("resolve", status=302, headers={"Location": "http://[::1"}, times=None),
            Failure,
            "an address that cannot be used",
        ),
        (
            Fault("resolve", status=302, headers={"Location": "http://h:99999/x"}, times=None),
            Failure,
            "an address that cannot be used",
        ),
        (
            Fault("resolve", status=302, headers={"Location": "http://h:\xb2/x"}, times=None),
            Failure,
            "an address that cannot be used",
        ),
        (
            Fault("resolve", status=302, headers={"Location": "/\xfc \xb2"}, times=None),
            Failure,
            "an address that cannot be used",
        ),
        (Fault("resolve", status=302, headers={"Location": "http:///x"}, times=None), Failure, "404|address"),
        (
            Fault("resolve", status=302, headers={"Location": "file:///etc/passwd"}, times=None),
            Failure,
            "not a safe addr",
        ),
        (Fault("resolve", status=302, headers={"Location": "?again"}, times=None), Failure, "more than 10 redirects"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_stays_is_a_clear_error(hub: hub_server.Hub, fault: Fault, kind: type[Failure], message: str) -> None:
    hub.faults = [fault]
    with pytest.raises(kind, match=message) as error:
        read(remote(hub))
    assert "model-00001-of-00003.safetensors" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_that_changes_while_it_is_read(hub: hub_server.Hub) -> None:
    file = remote(hub)
    read(file)
    hub.faults = [Fault("cdn", etag='"another"')]
    with pytest.raises(Malformed, match="changed while it was read"):
        read(file)


def test_a_file_of_another_size_than_listed(hub: hub_server.Hub) -> None:
    file = remote(hub)
    file.size += 1
    with pytest.raises(Malformed, match="bytes were expected"):
        read(file)


def test_a_hub_that_is_gone(hub: hub_server.Hub) -> None:
    with pytest.raises(Failure, match="after 6 attempts"):
        read(remote(hub, url="http://127.0.0.1:9/org/model-00001-of-00003.safetensors"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((("7", 7.0), (" 7 ", 7.0), (None, 2.5), ("soon", 2.5), ("", 2.5), ("-3", 2.5), ("1e9", 2.5), ("nan", 2.5))),
        *((("²", 2.5), ("٣", 2.5), ("7²", 2.5), ("9" * 5000, float("inf")))),
        *((("Fri, 31 Dec 999999999 23:59:59 GMT", 2.5), ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0))),
        ("Wed, 21 Oct " + "9" * 5000 + " 07:28:00 GMT", 2.5),
    ],
)
def test_how_long_to_wait(text: str | None, seconds: float) -> None:
    assert retry_after(text, default=2.5) == seconds


def test_how_long_to_wait_as_a_date() -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 95 < retry_after(later, default=0) <= 100
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT", default=5) == 0


# ---- reading ahead ----


def test_extents_that_follow_each_other_are_one() -> None:
    extents = [(A, 0, 5), (A, 5, 9), (A, 10, 12), (B, 12, 14), (A, 12, 13)]
    assert list(joined(extents)) == [(A, 0, 9), (A, 10, 12), (B, 12, 14), (A, 12, 13)]
    assert list(joined([])) == []


def test_every_byte_is_fetched_once_when_read_as_planned(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "BLOCK", 10_000)
    whole, order = expected(hub, 0, size(hub)), [(A, 200_000, 300_000), (A, 0, 150_000), (A, 300_000, size(hub))]
    reader = ReadAhead({A: remote(hub)}, [A])
    try:
        reader.expect(order)
        for _, start, stop in order:
            for at in range(start, stop, 7000):
                buffer = bytearray(min(7000, stop - at))
                assert reader.read_into(A, at, memoryview(buffer)) == len(buffer)
                assert buffer == whole[at : at + len(buffer)]
    finally:
        reader.close()
    fetched = [request.range for request in hub.requests if request.path.startswith("/cdn") and request.range]
    spans = [tuple(map(int, text.removeprefix("bytes=").split("-"))) for text in fetched]
    assert sum(last + 1 - first for first, last in spans) == sum(stop - start for _, start, stop in order)


def test_any_order_from_many_threads_gives_the_right_bytes(
    hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a memory of three blocks, everything is fetched and dropped many times over."""
    monkeypatch.setattr(ahead, "BLOCK", 20_000)
    monkeypatch.setattr(ahead, "AHEAD", 2)
    monkeypatch.setattr(ahead, "KEPT", 3)
    whole = expected(hub, 0, size(hub))
    reader, wrong = ReadAhead({A: remote(hub)}, [A]), []
    reader.expect([(A, 5000, 400_000)])  # the rest is read when asked for

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(25):
            start = rng.randrange(size(hub))
            buffer = bytearray(min(rng.randrange(1, 60_000), size(hub) - start))
            reader.read_into(A, start, memoryview(buffer))
            if buffer != whole[start : start + len(buffer)]:
                wrong.append((start, len(buffer)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader.close()
    assert not wrong


def test_a_block_that_is_read_keeps_its_memory(hub: hub_server.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is used again, but not under the hands of a thread that copies from it."""
    for name, value in (("BLOCK", 20_000), ("AHEAD", 1), ("KEPT", 2)):
        monkeypatch.setattr(ahead, name, value)
    reader = ReadAhead({A: remote(hub)}, [A])
    reader.expect([(A, 0, size(hub))])
    with reader._block(0) as block:
        for at in range(20_000, 200_000, 20_000):
            reader.read_into(A, at, memoryview(bytearray(20_000)))
        assert block.tobytes() == expected(hub, 0, 20_000)
    reader.close()


def test_closing_does_not_wait_for_a_server_that_hangs(hub: hub_server.Hub) -> None:
    reader = ReadAhead({A: remote(hub)}, [A])
    reader.expect([(A, 0, size(hub))])
    hub.faults = [Fault("cdn", pause=20, times=None)]
    errors: list[Failure] = []

    def work() -> None:
        try:
            reader.read_into(A, 0, memoryview(bytearray(10)))
        except Failure as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not any(request.path.startswith("/cdn") for request in hub.requests):
        time.sleep(0.01)
    reader.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1
