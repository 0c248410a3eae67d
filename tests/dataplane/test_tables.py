"""Pushes over the control socket: live for the next request, and all or nothing, whatever is wrong with them (docs/dataplane.md)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import socket
import subprocess
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from services.applier.control import Control, lines_of, push_body
from services.shared.contracts.tables import PushHeader
from tests.support.backends import echoes
from tests.support.clients import Connection, Tally, steady
from tests.support.edge import Edge, running, until
from tests.support.objects import ingress, service

pytestmark = pytest.mark.nginx

HOSTS = [f"h{n}.example.com" for n in range(5)]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with echoes("web", "other") as (ports, _):
        objects = [
            *service("web", [ports["web"]]),
            *service("other", [ports["other"]]),
            *service("moving", [ports["web"]]),
            ingress("other", {"other.example.com": {"/": "other"}}),
            ingress("moving", {"moving.example.com": {"/": "moving"}}),
            *(ingress(h.split(".")[0], {h: {"/": "web"}}) for h in HOSTS),
        ]
        with running(tmp_path, objects) as made:
            yield made


def _unchanged(edge: Edge) -> None:
    assert [edge.seen(h)["name"] for h in HOSTS] == ["web"] * len(HOSTS)
    assert edge.get("new.example.com")[0] == 404
    answer = asyncio.run(Control(edge.settings.control_socket).generation())
    assert answer is not None
    assert answer.version == "1.1"


def _rows(edge: Edge) -> dict[str, bytes]:
    """A change of every route, and one more."""
    changed = {f"h/{h}": edge.engine.rows[f"h/{h}"].replace(b"/web:80", b"/other:80") for h in HOSTS}
    assert all(b"/other:80" in row for row in changed.values())
    return {**changed, "h/new.example.com": changed["h/h0.example.com"]}


def test_another_base(edge: Edge) -> None:
    result = edge.push(push_body(PushHeader(base="1.7", version="1.8"), lines_of(_rows(edge), ())))
    assert result.outcome == "other base"
    assert msgspec.json.decode(result.detail) == {"version": "1.1"}
    _unchanged(edge)


@pytest.mark.parametrize(
    "broken",
    [
        lambda body: body[:-3],
        lambda body: body + b"+h/x\t{}\n",
        lambda body: body.replace(b"other", b"0ther", 1),
        lambda body: body.split(b"\n", 1)[1],
        lambda body: b"",
        lambda body: b"\n",
        lambda body: b"[]\n" + body,
        lambda body: b'{"base":1,"version":2}\n' + body,
    ],
)
def test_damaged(edge: Edge, broken: object) -> None:
    body = push_body(PushHeader(base="1.1", version="1.2"), lines_of(_rows(edge), ()))
    result = edge.push(broken(body))  # type: ignore[operator]  # a lambda of the list above
    assert (result.outcome, result.detail[:3]) == ("refused", "400")
    _unchanged(edge)


@pytest.mark.parametrize("line", [b"no sign\n", b"+no tab\n", b"+h/x\t{}", b"?h/x\t{}\n"])
def test_a_line_that_is_none_spoils_the_whole_push(edge: Edge, line: bytes) -> None:
    lines = lines_of(_rows(edge), ()) + line
    header = PushHeader(base="1.1", version="1.2", crc32=zlib.crc32(lines))
    result = edge.push(msgspec.json.encode(header) + b"\n" + lines)
    assert (result.outcome, result.detail[:3]) == ("refused", "400")
    _unchanged(edge)


def _doomed(edge: Edge, rows: dict[str, bytes]) -> dict[str, bytes]:
    """These rows and, written after them, more than the dictionary can hold."""
    return rows | {f"h/zz{n}.example.com": b'{"x":"' + b"x" * 1000 + b'"}' for n in range(edge.settings.tables_bytes // 1000)}


def test_more_than_fits(edge: Edge) -> None:
    result = edge.push(push_body(PushHeader(base="1.1", version="1.2"), lines_of(_doomed(edge, _rows(edge)), ())))
    assert result.outcome == "no memory", result
    assert result.detail.startswith("507")
    _unchanged(edge)

    assert edge.push(push_body(PushHeader(base="1.1", version="1.2"), lines_of(_rows(edge), ()))).outcome == "live"
    assert {edge.seen(h)["name"] for h in (*HOSTS, "new.example.com")} == {"other"}


def test_a_row_that_does_not_fit_in_place_of_a_smaller_one(edge: Edge) -> None:
    """nginx throws the old value away before it finds that the new one does not fit."""
    too_large = b'{"x":"' + b"x" * edge.settings.tables_bytes + b'"}'
    for host in (HOSTS[0], HOSTS[-1]):
        result = edge.push(push_body(PushHeader(base="1.1", version="1.2"), lines_of(_rows(edge) | {f"h/{host}": too_large}, ())))
        assert result.outcome == "no memory", result
        _unchanged(edge)


def test_requests_during_a_push_that_fails(edge: Edge) -> None:
    """Every host is answered all the time, and no worker keeps what it saw of the failed push."""
    names = [f"x{n}.example.com" for n in range(12_000)]
    row = edge.engine.rows["h/h0.example.com"]
    assert edge.push(push_body(PushHeader(base="1.1", version="1.1"), lines_of({f"h/{n}": row for n in names}, ()))).outcome == "live"
    changed = {f"h/{n}": row.replace(b"/web:80", b"/other:80") for n in names}
    body = push_body(PushHeader(base="1.1", version="1.2"), lines_of(_doomed(edge, changed), ()))
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(9) as pool:
        pushed = pool.submit(edge.push, body)
        pushed.add_done_callback(lambda _: over.set())
        until(lambda: over.is_set() or b"/other:80" in _row(edge, f"h/{names[-1]}"), "the push is under way")
        asking = [pool.submit(asyncio.run, _ask(edge, names[n::8], over)) for n in range(8)]
        assert pushed.result().outcome == "no memory"
        answers = [pair for a in asking for pair in a.result()]
    assert len(answers) >= 8
    assert {who for _, who in answers} <= {"web", "other"}
    assert {edge.seen(n)["name"] for n, _ in answers[-1000:]} == {"web"}
    _unchanged(edge)


def test_a_host_is_not_seen_before_its_backend(edge: Edge) -> None:
    names = [f"x{n}" for n in range(8000)]
    key = next(k for k in edge.engine.rows if k.startswith("b/") and k.endswith("/web:80"))
    lines = {f"h/{n}.example.com": edge.engine.rows["h/h0.example.com"].replace(b"/web:80", f"/{n}:80".encode()) for n in names}
    lines |= {key.replace("web", n): edge.engine.rows[key] for n in names}
    body = push_body(PushHeader(base="1.1", version="1.2"), lines_of(lines, ()))
    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(asyncio.run, _ask(edge, [f"{x}.example.com" for x in names[n::8]] * 20, over)) for n in range(8)]
        assert edge.push(body).outcome == "live"
        over.set()
        answers = {who for a in asking for _, who in a.result()}
    assert answers <= {"404", "web"}
    assert edge.seen("x7999.example.com")["name"] == "web"


def _row(edge: Edge, key: str) -> bytes:
    """As it lies in shared memory now."""
    path = str(edge.settings.control_socket)
    url = f"http://control/row?key={key}"
    return subprocess.run(["curl", "-s", "-m", "30", "--unix-socket", path, url], capture_output=True, check=True).stdout


async def _ask(edge: Edge, names: list[str], over: threading.Event) -> list[tuple[str, str]]:
    """(host, who answered or the status) for one after the other, until `over`; on one connection, thus by one worker."""
    out: list[tuple[str, str]] = []
    connection = Connection(edge.settings.http_port)
    for name in names:
        answer = await connection.get(name)
        out.append((name, msgspec.json.decode(answer.body)["name"] if answer.status == 200 else str(answer.status)))
        if over.is_set():
            break
    await connection.close()
    return out


def test_a_whole_table_replaces_what_it_does_not_name(edge: Edge) -> None:
    rows = {k: v for k, v in edge.engine.rows.items() if k != "h/h4.example.com"}
    assert edge.push(push_body(PushHeader(base="", version="2.1"), lines_of(rows, ()))).outcome == "live"
    assert edge.get("h4.example.com")[0] == 404
    assert edge.seen("h0.example.com")["name"] == "web"


def test_changes_are_live_for_the_next_request(edge: Edge) -> None:
    for n in range(20):
        to = ("web", "other")[n % 2]
        edge.update(ingress("h0", {"h0.example.com": {"/": to}}))
        assert {edge.seen("h0.example.com")["name"] for _ in range(4)} == {to}
    edge.update(ingress("later", {"later.example.com": {"/": "other"}}))
    assert edge.seen("later.example.com")["name"] == "other"
    edge.update(ingress("later", {"later2.example.com": {"/": "web"}}))
    assert edge.get("later.example.com")[0] == 404
    assert edge.seen("later2.example.com")["name"] == "web"


def test_no_request_is_lost_while_routes_backends_and_endpoints_change(edge: Edge) -> None:
    async def run() -> Tally:
        async with steady([edge.settings.http_port], "moving.example.com", lambda a: a.status == 200, per_second=300) as tally:
            for n in range(90):
                await asyncio.to_thread(edge.update, *changes[n % 3])
            while tally.requests <= 50:  # a slow machine
                await asyncio.sleep(0.01)
        return tally

    here, there = (edge.seen(h)["port"] for h in ("moving.example.com", "other.example.com"))
    changes = (
        [ingress("moving", {"moving.example.com": {"/": "fresh"}}), *service("fresh", [here])],
        [*service("fresh", [here, there])],
        [ingress("moving", {"moving.example.com": {"/": "moving"}})],
    )
    tally = asyncio.run(run())
    assert tally.failures == []


def test_a_request_in_flight_is_finished_where_it_began(edge: Edge) -> None:
    """nginx picks the endpoint after it has the whole body: by then the route may lead elsewhere, and the backend be gone."""
    with contextlib.ExitStack() as stack:
        uploads = [stack.enter_context(socket.create_connection(("127.0.0.1", edge.settings.http_port), 30)) for _ in range(4)]
        for upload in uploads:
            upload.sendall(b"POST / HTTP/1.1\r\nHost: moving.example.com\r\nConnection: close\r\nContent-Length: 10\r\n\r\nhello")
        # Requests of later connections are answered by then, so these are read up to their bodies.
        assert {edge.seen("moving.example.com")["name"] for _ in range(20)} == {"web"}
        edge.update(ingress("moving", {"moving.example.com": {"/": "other"}}))
        assert not [key for key in edge.engine.rows if key.startswith("b/") and "moving" in key]
        assert {edge.seen("moving.example.com")["name"] for _ in range(20)} == {"other"}
        for upload in uploads:
            upload.sendall(b"world")
            answer = b"".join(iter(functools.partial(upload.recv, 65536), b""))
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert msgspec.json.decode(answer.split(b"\r\n\r\n")[1])["name"] == "web"


def test_nobody_else_can_reach_the_control_socket(edge: Edge) -> None:
    assert edge.settings.control_socket.parent.stat().st_mode & 0o777 == 0o700
    for host in ("nobody.example.com", "h0.example.com"):
        for path in ("/tables", "/generation", "/stats", "/row?key=s", "/.sluice/auth", "/.sluice/vars"):
            status, _, body = edge.get(host, path)
            assert status == 404 or json.loads(body)["path"] == path, "its backend's"
