"""What the parsers accept, appliers and nginx accept: the least and the most of each ConfigMap key and of each annotation."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.applier.gate import check_bundle
from services.applier.nodeconf import NodeSettings, prepare_node, write_generation
from services.compiler.annotations.families import ANNOTATIONS
from services.compiler.configmap import KEYS, parse_settings
from services.compiler.ingresses import ReadIngress, read_ingress
from services.compiler.locationpolicy import location_policy
from services.compiler.policies import render_bundle
from services.compiler.settings import GlobalSettings
from services.shared.contracts.objects import Ingress
from services.shared.contracts.version import PolicyBundle
from tests.support.compiling import upsert
from tests.support.nats import free_port
from tests.support.objects import ingress

pytestmark = pytest.mark.nginx

NUMBERS = ("-1", "0", "1", "2", "99", "100", "255", "256", "299", "300", "499", "511", "512", "599", "1023", "1024", "65535", "65536")
LARGE = ("1000000", "2147483647", "2147483648", "4294967295", "9999999999", "999999999999", "1099511627776")
SIZES = ("0k", "1k", "64k", "16m", "17m", "1g", "2g", "900g", "1023g", "1024g", "1k ", "1K", "1G", "99999999999g")
TIMES = ("0s", "1ms", "500ms", "1500ms", "1s", "60s", "1h", "25d", "365d", "9999999d", "2w", "1M", "1y", "9999999y")
WORDS = (
    "",
    "on",
    "off",
    "true",
    "auto",
    "none",
    "*",
    "a",
    "a,b",
    "a b",
    "0.0.0.0/0",
    "::/0",
    "Low",
    "Critical",
    "X-A",
    "$host",
    "~*a",
    "~(",
    "4 1k",
)
MIXES = (
    "4 8k",
    "256 1g",
    "1 512",
    "0 8k",
    "text/html",
    "text/css *",
    "TLSv1",
    "TLSv1.3",
    "HIGH",
    "ALL",
    "DEFAULT:@SECLEVEL=0",
    "X25519",
    "P-521:X448",
)
CODES = ("300", "301", "404,404,503", "302,418,599", "400,499", "error", "off", "error timeout off", "non_idempotent", "http_500 http_429")
VALUES = (*NUMBERS, *LARGE, *SIZES, *TIMES, *WORDS, *MIXES, *CODES)


def _config_maps() -> Iterator[tuple[str, str, PolicyBundle]]:
    for name in sorted(KEYS):
        for value in VALUES:
            settings, problems = parse_settings({name: value})
            if not any(p.severity == "error" for p in problems):
                yield name, value, render_bundle(settings, [location_policy(_annotated({}, settings).settings, settings)])


def _annotated(annotations: dict[str, str], settings: GlobalSettings) -> ReadIngress:
    found = upsert(ingress("a", {"a.example.com": {"/": "a"}}, annotations=annotations)).object
    assert isinstance(found, Ingress)
    return read_ingress(found, settings)


def _annotations() -> Iterator[tuple[str, str, PolicyBundle]]:
    settings = GlobalSettings(allow_snippet_annotations=True, annotations_risk_level="Critical")
    for name in sorted(ANNOTATIONS):
        for value in VALUES:
            read = _annotated({name: value}, settings)
            if not read.rejected:
                yield name, value, render_bundle(settings, [location_policy(read.settings, settings)])


@pytest.mark.parametrize("source", [_config_maps, _annotations])
def test_nginx_takes_what_the_parsers_take(source: Callable[[], Iterator[tuple[str, str, PolicyBundle]]], tmp_path: Path) -> None:
    node = NodeSettings(directory=tmp_path, http_port=free_port(), https_port=free_port(), address="127.0.0.1")
    prepare_node(node)
    refused, tried = [], set[PolicyBundle]()
    for name, value, bundle in source():
        if bundle in tried:
            continue
        tried.add(bundle)
        refused += [f"{name}: {value!r}: {e.words}" for e in check_bundle(bundle)]
        write_generation(tmp_path / "versions" / "1", node, bundle, generation=1, version="1.1")
        command = ["/usr/sbin/nginx", "-t", "-q", "-p", str(tmp_path), "-c", str(tmp_path / "versions" / "1" / "nginx.conf")]
        words = subprocess.run(command, capture_output=True, text=True, check=False).stderr
        if "[emerg]" in words or "[alert]" in words:
            refused.append(f"{name}: {value!r}: {words.splitlines()[0]}")
    assert refused == []
    assert len(tried) > 100
