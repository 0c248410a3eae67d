"""Pushes over the control socket are all or nothing, whatever is wrong with them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from services.applier.control import Control, lines_of, push_body
from services.shared.contracts.tables import PushHeader
from tests.support.edge import Edge, echoes
from tests.support.objects import ingress, service

pytestmark = pytest.mark.nginx

HOSTS = [f"h{n}.example.com" for n in range(5)]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with echoes("web", "other") as (ports, _):
        made = Edge(tmp_path)
        made.start(
            [
                *service("web", [ports["web"]]),
                *service("other", [ports["other"]]),
                ingress("other", {"other.example.com": {"/": "other"}}),
                *(ingress(h.split(".")[0], {h: {"/": "web"}}) for h in HOSTS),
            ]
        )
        try:
            yield made
        finally:
            made.stop()


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


def test_more_than_fits(edge: Edge) -> None:
    rows = _rows(edge) | {f"h/big{n}.example.com": b'{"x":"' + b"x" * 4000 + b'"}' for n in range(edge.settings.tables_bytes // 3000)}
    result = edge.push(push_body(PushHeader(base="1.1", version="1.2"), lines_of(rows, ())))
    assert result.outcome == "no memory", result
    _unchanged(edge)

    small = {k: v for k, v in rows.items() if not k.startswith("h/big")}
    assert edge.push(push_body(PushHeader(base="1.1", version="1.2"), lines_of(small, ()))).outcome == "live"
    assert {edge.seen(h)["name"] for h in (*HOSTS, "new.example.com")} == {"other"}


def test_a_whole_table_replaces_what_it_does_not_name(edge: Edge) -> None:
    rows = {k: v for k, v in edge.engine.rows.items() if k != "h/h4.example.com"}
    assert edge.push(push_body(PushHeader(base="", version="2.1"), lines_of(rows, ()))).outcome == "live"
    assert edge.get("h4.example.com")[0] == 404
    assert edge.seen("h0.example.com")["name"] == "web"
