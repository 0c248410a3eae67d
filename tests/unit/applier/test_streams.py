"""TCP and UDP services on a node: what of a version's text is taken, where it listens, and which endpoints are used."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from services.applier.decide import composed, decide
from services.applier.gate import check_bundle
from services.applier.guard import Malformed, look
from services.applier.nodeconf import NodeSettings, nginx_conf
from services.applier.streamports import held, missing, taken
from services.applier.streams import Listener, StreamFiles, file_of, listeners, node_text, unavailable
from services.compiler.ir import Stream
from services.compiler.policies import render_bundle
from services.compiler.settings import GlobalSettings
from services.shared.checks.addresses import forbidden
from services.shared.contracts.tables import ResolvedRow, StreamRow, encode_row
from services.shared.contracts.version import Policy, PolicyBundle, policy_hash

STREAMS = (
    Stream("tcp", 9000, "shop", "db", "5432", True, True),
    Stream("tcp", 9001, "shop", "db", "5432"),
    Stream("udp", 53, "kube-system", "dns", "53"),
)
BUNDLE = render_bundle(GlobalSettings(), ())
WITH = render_bundle(GlobalSettings(), (), STREAMS)
TEXT = next(p.text for p in WITH.policies if p.scope == "stream")


def policy(text: str) -> Policy:
    return Policy(hash=policy_hash("stream", text), scope="stream", text=text)


def test_the_compilers_text_passes_the_gate_and_is_understood() -> None:
    assert check_bundle(WITH) == []
    assert listeners(TEXT) == (Listener("tcp", 9000), Listener("tcp", 9001), Listener("udp", 53))


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("$sluice_endpoint", '"unix:/run/other.sock"', 1),
        TEXT.replace("$sluice_endpoint", '"169.254.169.254:80"', 1),
        TEXT.replace("tcp_9000", "tcp_9001"),
        TEXT.replace("tcp_9000", '"../../etc/passwd"'),
        TEXT.replace("listen 9000 proxy_protocol;", 'listen "unix:/run/docker.sock";'),
        TEXT.replace("listen 9001;", "listen 9001;\n  listen 22;"),
        TEXT.replace("listen 9001;", "listen 99999;").replace("tcp_9001", "tcp_99999"),
        TEXT + "js_import x from y;\n",
        TEXT + "include other.conf;\n",
        TEXT.replace("logs/access.log", "/etc/cron.d/x"),
        TEXT.replace("server {\n  listen 9001", "server  {\n  listen 9001"),
    ],
)
def test_what_the_compiler_would_not_write_is_refused(text: str) -> None:
    assert text != TEXT
    assert check_bundle(PolicyBundle(policies=(policy(text),))) != []


def test_a_node_listens_on_its_own_addresses_with_its_offset() -> None:
    text = node_text(TEXT, 2, (), {Listener("tcp", 9001)})
    assert [line.strip() for line in text.splitlines() if "listen" in line] == [
        "listen 9002 reuseport backlog=4096 proxy_protocol;",
        "listen [::]:9002 reuseport backlog=4096 ipv6only=on proxy_protocol;",
        "listen 55 udp reuseport;",
        "listen [::]:55 udp reuseport ipv6only=on;",
    ]
    assert "set $sluice_stream tcp_9000;" in text and "tcp_9001" not in text
    assert "  listen 192.0.2.1:9001 reuseport backlog=4096;" in node_text(TEXT, 0, ("192.0.2.1",), ())


def test_without_such_services_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    settings = NodeSettings(directory=tmp_path, http_port=1, https_port=2)
    assert "stream" not in nginx_conf(settings, BUNDLE).replace("upstream", "")
    assert "ngx_stream_js_module.so" in nginx_conf(settings, WITH)


def test_a_refused_stream_policy_is_left_out_or_stays_as_it_was() -> None:
    (refused,) = (p.hash for p in WITH.policies if p.scope == "stream")
    assert composed(WITH, BUNDLE, {refused}) == BUNDLE
    before = policy("access_log off;\n")
    after = composed(WITH, PolicyBundle(policies=(*BUNDLE.policies, before)), {refused})
    assert after is not None and [p for p in after.policies if p.scope == "stream"] == [before]


def test_the_last_service_gone_closes_its_port() -> None:
    def reload(bundle: PolicyBundle, loaded: PolicyBundle) -> str:
        found = decide(bundle=bundle, loaded=loaded, refused=(), tables_wanted=1, tables_bytes=1, settings_changed=False, rows_behind=False)
        return found.reload

    assert (reload(BUNDLE, WITH), reload(WITH, BUNDLE), reload(WITH, WITH), reload(BUNDLE, BUNDLE)) == ("policy", "policy", "", "")


def test_endpoints_as_njs_reads_them() -> None:
    row = StreamRow(name="x", endpoints=(("10.0.0.1", 80), ("2001:db8::1", 81), ("127.0.0.1", 82)))
    assert msgspec.json.decode(file_of(row, {}))["endpoints"] == ["10.0.0.1:80", "[2001:db8::1]:81", "127.0.0.1:82"]
    strict = msgspec.structs.replace(row, any_address=False)
    assert msgspec.json.decode(file_of(strict, {})) == {"name": "x", "endpoints": ["10.0.0.1:80", "[2001:db8::1]:81"]}
    external = StreamRow(name="x", external="db.example.com", external_port=5432, any_address=False)
    answers = {"n/db.example.com": encode_row(ResolvedRow(addresses=("192.0.2.1", "169.254.169.254")))}
    assert msgspec.json.decode(file_of(external, answers))["endpoints"] == ["192.0.2.1:5432"]
    assert msgspec.json.decode(file_of(external, {}))["endpoints"] == []


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "127.8.8.8", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "::", "fe80::1", "ff02::1", "::ffff:127.0.0.1", "x", ""],
)
def test_addresses_that_a_service_of_a_cluster_must_not_reach(text: str) -> None:
    assert forbidden(text)


@pytest.mark.parametrize("text", ["10.0.0.1", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1", "fd00::1"])
def test_other_addresses(text: str) -> None:
    assert not forbidden(text)


def test_files_come_and_go_with_rows(tmp_path: Path) -> None:
    files = StreamFiles(tmp_path / "streams")
    rows = {f"l/tcp/{p}": encode_row(StreamRow(name="x", endpoints=(("10.0.0.1", p),))) for p in (9000, 9001)}
    files.write({**rows, "h/x": b"{}"}, {})
    file = tmp_path / "streams" / "tcp_9000.json"
    assert file.stat().st_mode & 0o777 == 0o644, "workers are another user"
    before = file.stat().st_ino
    files.write(rows, {})
    assert file.stat().st_ino == before, "nothing is written twice"
    files.forget(["l/tcp/9001", "b/x"])
    files.keep(["l/tcp/9001"])
    assert list((tmp_path / "streams").iterdir()) == []


@pytest.mark.parametrize("key", ["l/tcp/../../x", "l/tcp/0", "l/tcp/", "l/sctp/1", "l/tcp/9000/x", "l/x"])
def test_a_key_that_names_no_port_is_refused(key: str) -> None:
    with pytest.raises(Malformed):
        look({key: encode_row(StreamRow(name="x"))})
    with pytest.raises(Malformed):
        look({"l/tcp/9000": b'{"name":1}'})


def test_ports_that_others_have_are_left_out_and_asked_for_again(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        bundle = render_bundle(GlobalSettings(), (), (Stream("tcp", port - 1, "a", "b", "1"),))
        settings = NodeSettings(directory=tmp_path, http_port=1, https_port=2, address="127.0.0.1", stream_port_offset=1)
        listener = Listener("tcp", port - 1)
        assert taken(settings, bundle, tmp_path / "none", running=False) == {listener: f"tcp port {port} is taken by another process"}
        assert not missing(settings, bundle, tmp_path)
        (tmp_path / "stream.conf").write_text(
            node_text(next(p.text for p in bundle.policies if p.scope == "stream"), 1, ("127.0.0.1",), ())
        )
        assert held(tmp_path, 1) == {listener}
        assert taken(settings, bundle, tmp_path, running=True) == {}, "it is this node's nginx"
        (tmp_path / "stream.conf").unlink()
    assert missing(settings, bundle, tmp_path)
    assert taken(settings, bundle, tmp_path, running=True) == {}
    assert unavailable(Listener("udp", 65535), 1, "", ours=False) == "udp port 65535 + 1 does not exist"
