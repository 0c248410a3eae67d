"""What the kubernetes source watches, by the flags of its groups of nodes."""

from __future__ import annotations

from msgspec.structs import replace

from services.shared.flags import Flags
from services.watcher.sources.kubernetes.source import collections


def watched(flags: Flags, *further: Flags) -> set[tuple[str, str, str]]:
    found = collections(flags, *further)
    assert len(found) == len(set(found)), "each once"
    return {(c.kind, c.namespace, c.name) for c in found}


def test_each_group_adds_what_its_flags_name() -> None:
    one = watched(Flags())
    two = watched(Flags(), Flags(configmap="edge/internal"), Flags(configmap="edge/internal", ingress_class="other"))
    assert two - one == {("ConfigMap", "edge", "internal")}
    assert one - two == set()


def test_in_one_namespace_what_a_group_names_elsewhere_is_watched_by_name() -> None:
    shop = Flags(watch_namespace="shop")
    one = watched(shop)
    further = replace(shop, configmap="edge/internal", default_ssl_certificate="edge/tls", default_backend_service="edge/web")
    assert watched(shop, further) - one == {
        ("ConfigMap", "edge", "internal"),
        ("Secret", "edge", "tls"),
        ("Service", "edge", "web"),
        ("EndpointSlice", "edge", ""),
    }
    near = replace(shop, configmap="shop/internal", default_ssl_certificate="shop/tls", default_backend_service="shop/web")
    assert watched(shop, near) - one == {("ConfigMap", "shop", "internal")}, "the rest is watched anyway"


def test_the_configmaps_of_tcp_and_udp_services_are_watched_by_name() -> None:
    named = Flags(tcp_services_configmap="edge/tcp", udp_services_configmap="edge/udp")
    assert watched(named) - watched(Flags()) == {("ConfigMap", "edge", "tcp"), ("ConfigMap", "edge", "udp")}
    assert watched(Flags(tcp_services_configmap="edge/both", udp_services_configmap="edge/both")) - watched(Flags()) == {
        ("ConfigMap", "edge", "both")
    }
