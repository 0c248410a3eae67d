"""TCP and UDP services in the compiler: what entries mean, what is said of bad ones, and that nothing changes where there are none."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compiler.engine import Engine
from services.compiler.ir import Stream
from services.compiler.settings import GlobalSettings
from services.compiler.streampolicy import stream_text as stream_text_of
from services.compiler.streams import parse_streams, reserved_ports
from services.shared.contracts.objects import Key
from services.shared.contracts.problem import Problem, Reason
from services.shared.flags import Flags
from services.shared.nginxtext.strict import parse
from tests.support.compiling import delete, upsert
from tests.support.objects import config_map, port_service

FLAGS = Flags(tcp_services_configmap="ingress-nginx/tcp", udp_services_configmap="ingress-nginx/udp")
TCP = Key("ConfigMap", "ingress-nginx", "tcp")


def engine_with(*objects: dict[str, Any], flags: Flags = FLAGS, nodes: int = 1) -> Engine:
    engine = Engine(flags, nodes=nodes)
    for obj in objects:
        engine.apply(upsert(obj))
    engine.compile()
    return engine


def row(engine: Engine, key: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(engine.rows[key])
    return found


def stream_text(engine: Engine) -> str:
    return next((p.text for p in engine.bundle.policies if p.scope == "stream"), "")


def problems_of(engine: Engine, key: Key = TCP) -> tuple[Problem, ...]:
    verdict = engine.verdict(key)
    return verdict.problems if verdict else ()


@pytest.mark.parametrize(
    ("value", "port", "decode", "encode"),
    [
        ("shop/db:5432", "5432", False, False),
        ("shop/db:main", "main", False, False),
        (" shop/db:5432\n", "5432", False, False),
        ("shop/db:5432:PROXY", "5432", True, False),
        ("shop/db:5432:proxy:Proxy", "5432", True, True),
        ("shop/db:5432::PROXY", "5432", False, True),
        ("shop/db:5432:", "5432", False, False),
    ],
)
def test_what_an_entry_means(value: str, port: str, decode: bool, encode: bool) -> None:
    assert parse_streams({"9000": value}, "tcp", {}) == ((Stream("tcp", 9000, "shop", "db", port, decode, encode),), [])


@pytest.mark.parametrize("value", ["shop/db:5432:PORXY", "shop/db:5432:PROXY:no", "shop/db:5432:PROXY:PROXY:PROXY"])
def test_other_words_are_ignored_and_named(value: str) -> None:
    (stream,), (problem,) = parse_streams({"9000": value}, "tcp", {})
    assert not stream.encode
    assert (problem.severity, problem.field, problem.example) == ("warning", "data[9000]", "default/postgres:5432:PROXY")


def test_udp_has_no_proxy_protocol() -> None:
    (stream,), (problem,) = parse_streams({"53": "shop/dns:53:PROXY:PROXY"}, "udp", {})
    assert (stream.decode, stream.encode, problem.severity) == (False, False, "warning")
    assert parse_streams({"443": "shop/quic:443"}, "udp", reserved_ports(Flags()))[1] == [], "the nodes' own ports are TCP"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "db:5432",
        "shop/db",
        "shop/db:",
        "shop/DB:5432",
        "shop/db:5432;",
        "a/b/c:1",
        "shop/db:5432 PROXY",
        "shop/db:\u0661",
        "shop/db;}:1",
        "$x/y:1",
        "shop/db:5432\n;",
        "../db:1",
    ],
)
def test_a_bad_entry_is_named_with_a_good_one_and_others_go_on(value: str) -> None:
    (stream,), (problem,) = parse_streams({"9000": value, "9001": "shop/db:5432"}, "tcp", {})
    assert stream.port == 9001
    assert (problem.reason, problem.field, problem.severity) == (Reason.INVALID_CONFIG_KEY, "data[9000]", "error")
    assert problem.example == "default/postgres:5432"


@pytest.mark.parametrize("port", ["", "0", "65536", "99999", "-1", "+9000", "09000", "9000 ", "http", "\u0669", "9e3", "9000\n"])
def test_what_is_no_port(port: str) -> None:
    found, (problem,) = parse_streams({port: "shop/db:5432"}, "tcp", {})
    assert found == ()
    assert "is not a port: the key is a number from 1 to 65535" in problem.message


@pytest.mark.parametrize(("port", "use"), [("80", "http"), ("443", "https"), ("10254", "health")])
def test_the_nodes_own_ports_are_refused(port: str, use: str) -> None:
    found, (problem,) = parse_streams({port: "shop/db:5432"}, "tcp", reserved_ports(Flags()))
    assert found == ()
    assert problem.message == f"port {port} is the nodes' own, for {use}; choose another"


def test_nodes_that_share_a_machine_need_room() -> None:
    reserved = reserved_ports(Flags(http_port=8080), nodes=3)
    data = {"8078": "a/b:1", "9000": "a/b:1", "9002": "a/b:1", "9003": "a/b:1", "65534": "a/b:1"}
    found, problems = parse_streams(data, "tcp", reserved, nodes=3)
    assert [s.port for s in found] == [9000, 9003]
    assert [p.field for p in problems] == ["data[8078]", "data[9002]", "data[65534]"]


def test_rows_and_listeners() -> None:
    engine = engine_with(
        *port_service("db", [("10.0.0.2", 6000), ("2001:db8::1", 6000)]),
        *port_service("dns", [("10.0.0.3", 5353)], "UDP", port=53),
        config_map({"9000": "default/db:main:PROXY:PROXY", "9001": "default/db:5432"}, "tcp"),
        config_map({"53": "default/dns:53"}, "udp"),
    )
    assert row(engine, "l/tcp/9000") == {"name": "tcp-default-db-main", "endpoints": [["10.0.0.2", 6000], ["2001:db8::1", 6000]]}
    assert row(engine, "l/tcp/9001")["name"] == "tcp-default-db-5432"
    assert row(engine, "l/udp/53")["endpoints"] == [["10.0.0.3", 5353]]
    assert not any(key.startswith("b/") for key in engine.rows)
    servers = [[(d.name, d.args) for d in server.block or ()] for server in parse(stream_text(engine)) if server.name == "server"]
    assert servers == [
        [
            ("listen", ("9000", "proxy_protocol")),
            ("set", ("$sluice_stream", "tcp_9000")),
            ("proxy_protocol", ("on",)),
            ("proxy_pass", ("$sluice_endpoint",)),
        ],
        [("listen", ("9001",)), ("set", ("$sluice_stream", "tcp_9001")), ("proxy_pass", ("$sluice_endpoint",))],
        [
            ("listen", ("53", "udp")),
            ("set", ("$sluice_stream", "udp_53")),
            ("proxy_responses", ("1",)),
            ("proxy_pass", ("$sluice_endpoint",)),
        ],
    ]
    assert problems_of(engine) == ()


def test_without_entries_there_is_no_policy_and_the_bundle_is_that_of_before() -> None:
    plain = engine_with(flags=Flags()).bundle
    assert engine_with().bundle == plain
    engine = engine_with(*port_service("db", [("10.0.0.2", 6000)]), config_map({"9000": "default/db:5432"}, "tcp"))
    assert engine.bundle != plain
    for gone in (config_map({"9000": "nonsense"}, "tcp"), config_map({}, "tcp")):
        engine.apply(upsert(gone))
        output = engine.compile()
        assert engine.bundle == plain
        assert "l/tcp/9000" not in engine.rows
        assert output.delete in (("l/tcp/9000",), ())


def test_a_change_of_endpoints_is_one_row() -> None:
    engine = engine_with(*port_service("db", [("10.0.0.2", 6000)]), config_map({"9000": "default/db:5432"}, "tcp"))
    for obj in port_service("db", [("10.0.0.9", 6000)]):
        engine.apply(upsert(obj))
    output = engine.compile()
    assert (list(output.upsert), output.bundle_changed) == (["l/tcp/9000"], False)
    engine.apply(upsert(config_map({"9000": "default/other:5432"}, "tcp")))
    output = engine.compile()
    assert (list(output.upsert), output.bundle_changed) == (["l/tcp/9000"], False), "another Service needs no other listener"


def test_a_missing_service_keeps_the_listener_and_is_a_warning() -> None:
    engine = engine_with(config_map({"9000": "default/db:5432", "9001": "default/db:targeted"}, "tcp"))
    assert row(engine, "l/tcp/9000") == {"name": "tcp-default-db-5432"}
    assert stream_text(engine).count("server {") == 2
    assert {(p.reason, p.severity) for p in problems_of(engine)} == {(Reason.SERVICE_NOT_FOUND, "warning")}
    for obj in port_service("db", [("10.0.0.2", 6000)]):
        engine.apply(upsert(obj))
    output = engine.compile()
    assert not output.bundle_changed
    (problem,) = problems_of(engine)
    assert (problem.reason, problem.field) == (Reason.PORT_NOT_FOUND, "data[9001]")
    assert output.verdicts[TCP] is not None
    for obj in port_service("db", []):
        engine.apply(delete(upsert(obj)))
    assert engine.compile().upsert["l/tcp/9000"] == b'{"name":"tcp-default-db-5432"}'


def test_http_backends_and_udp_endpoints_do_not_mix() -> None:
    engine = engine_with(
        *port_service("db", [("10.0.0.2", 6000)], "UDP"),
        config_map({"9000": "default/db:5432"}, "tcp"),
        config_map({"9000": "default/db:5432"}, "udp"),
    )
    assert row(engine, "l/udp/9000")["endpoints"] == [["10.0.0.2", 6000]]
    assert "endpoints" not in row(engine, "l/tcp/9000")
    assert problems_of(engine)[0].reason == Reason.PORT_NOT_FOUND


def test_an_external_name_is_left_to_the_node() -> None:
    external = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "db", "namespace": "default"},
        "spec": {"type": "ExternalName", "externalName": "db.example.com"},
    }
    engine = engine_with(external, config_map({"9000": "default/db:5432", "9001": "default/db:main"}, "tcp"))
    assert row(engine, "l/tcp/9000") == {"name": "tcp-default-db-5432", "external": "db.example.com", "external_port": 5432}
    (problem,) = problems_of(engine)
    assert (problem.reason, problem.field) == (Reason.NO_ENDPOINTS, "data[9001]")


def test_the_controllers_configmap_says_how_they_are_proxied() -> None:
    settings = {
        "proxy-stream-timeout": "30s",
        "proxy-stream-responses": "2",
        "log-format-stream": "$remote_addr $proxy_upstream_name",
        "enable-real-ip": "true",
        "proxy-real-ip-cidr": "10.0.0.0/8",
    }
    engine = engine_with(
        config_map(settings),
        config_map({"9000": "default/db:1:PROXY", "9001": "default/db:1"}, "tcp"),
        config_map({"53": "default/dns:53"}, "udp"),
    )
    text = stream_text(engine)
    assert (
        'log_format log_stream "$remote_addr $proxy_upstream_name";\naccess_log logs/access.log log_stream;\nproxy_timeout 30s;\n' in text
    )
    assert text.count("set_real_ip_from 10.0.0.0/8;") == 1
    assert text.count("proxy_responses 2;") == 1
    engine.apply(upsert(config_map({"disable-stream-access-log": "true"})))
    engine.compile()
    assert "access_log off;\nproxy_timeout 600s;" in stream_text(engine)


def test_a_log_format_knows_the_variables_of_streams_only() -> None:
    engine = engine_with(config_map({"log-format-stream": "$request_uri"}))
    (problem,) = problems_of(engine, Key("ConfigMap", "ingress-nginx", "ingress-nginx-controller"))
    assert "$request_uri is not one" in problem.message


@given(
    st.dictionaries(
        st.text(max_size=12), st.text(max_size=60) | st.from_regex(r"[a-z]{1,3}/[a-z;{}$]{1,5}:[a-z0-9\\s;]{1,5}(:PROXY)?"), max_size=4
    )
)
def test_whatever_stands_there_only_ports_and_flags_become_text(data: dict[str, str]) -> None:
    found, problems = parse_streams(data, "tcp", {})
    assert len({s.port for s in found}) == len(found) and len(found) + len({p.field for p in problems if p.severity == "error"}) == len(
        data
    )
    servers = [d for d in parse(stream_text_of(found, GlobalSettings())) if d.name == "server"]
    assert len(servers) == len(found)
    for stream, server in zip(found, servers, strict=True):
        inner = {d.name: d.args for d in server.block or ()}
        assert inner.pop("listen") == (str(stream.port), *(["proxy_protocol"] if stream.decode else []))
        assert inner.pop("set") == ("$sluice_stream", f"tcp_{stream.port}")
        assert inner in ({"proxy_pass": ("$sluice_endpoint",)}, {"proxy_pass": ("$sluice_endpoint",), "proxy_protocol": ("on",)})
