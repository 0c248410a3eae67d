"""configuration-snippet: only where the administrator allows it (behaviours 22)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.backends import echoes
from tests.support.edge import running
from tests.support.objects import config_map, ingress, service

pytestmark = pytest.mark.nginx


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"allow-snippet-annotations": "true", "annotations-risk-level": "Critical"}, True),
        ({"allow-snippet-annotations": "true"}, False),
        ({"annotations-risk-level": "Critical"}, False),
        ({}, False),
    ],
)
def test_a_snippet(tmp_path: Path, settings: dict[str, str], allowed: bool) -> None:
    snippet = {"configuration-snippet": 'more_set_headers "X-Snippet: $request_method";'}
    with echoes("web") as (ports, _):
        objects = [
            config_map(settings),
            *service("web", [ports["web"]]),
            ingress("snippet", {"snippet.example.com": {"/": "web"}}, annotations=snippet),
            ingress("plain", {"plain.example.com": {"/": "web"}}),
        ]
        with running(tmp_path, objects) as edge:
            status, headers, _ = edge.get("snippet.example.com")
            assert (status, headers.get("x-snippet")) == ((200, "GET") if allowed else (404, None))
            status, headers, _ = edge.get("plain.example.com")
            assert (status, headers.get("x-snippet")) == (200, None)
            text = "".join(p.read_text() for p in (edge.settings.directory / "current").rglob("*.conf"))
            assert ("X-Snippet" in text) is allowed
