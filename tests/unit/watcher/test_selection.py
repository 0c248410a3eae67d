"""Which objects of the source are published."""

from __future__ import annotations

import itertools

import pytest

from services.shared.contracts.objects import (
    AnyObject,
    ConfigMap,
    EndpointSlice,
    Ingress,
    IngressClass,
    IngressClassSpec,
    IngressSpec,
    IngressTLS,
    Key,
    Metadata,
    Secret,
    Service,
    key_of,
)
from services.shared.flags import Flags
from services.watcher.changes import ObjectChanges
from services.watcher.references import secrets_of_ingress
from services.watcher.selection import Selection

CLASS = Key("IngressClass", "", "nginx")


def meta(name: str, namespace: str = "default", **annotations: str) -> Metadata:
    annotated = {f"nginx.ingress.kubernetes.io/{k.replace('_', '-')}": v for k, v in annotations.items()}
    return Metadata(name=name, namespace=namespace, annotations=annotated)


def secret(name: str, namespace: str = "default") -> Secret:
    return Secret(metadata=meta(name, namespace))


def ingress(name: str, *tls: str, **annotations: str) -> Ingress:
    return Ingress(metadata=meta(name, **annotations), spec=IngressSpec(tls=tuple(IngressTLS(secret_name=s) for s in tls)))


def put(*objects: AnyObject) -> ObjectChanges:
    return {key_of(obj): obj for obj in objects}


def gone(*objects: AnyObject) -> ObjectChanges:
    return {key_of(obj): None for obj in objects}


def published(selection: Selection, *steps: ObjectChanges) -> set[Key]:
    """What is published after all steps, the implicit class left out."""
    state: dict[Key, AnyObject | None] = {}
    for step in steps:
        state |= selection.apply(step)
    return {k for k, obj in state.items() if obj is not None} - {CLASS}


def test_a_secret_is_published_while_something_refers_to_it() -> None:
    cert, other, ing = secret("cert"), secret("other"), ingress("a", "cert")

    assert published(Selection(Flags()), put(cert, other)) == set()
    assert published(Selection(Flags()), put(cert, other, ing)) == {key_of(cert), key_of(ing)}
    assert published(Selection(Flags()), put(ing), put(cert)) == {key_of(cert), key_of(ing)}
    assert published(Selection(Flags()), put(cert, ing), put(ingress("a", "other"))) == {key_of(ing)}
    assert published(Selection(Flags()), put(cert, ing), gone(ing)) == set()
    assert published(Selection(Flags()), put(cert, ing), gone(cert)) == {key_of(ing)}


def test_a_secret_that_two_refer_to_stays_until_both_are_gone() -> None:
    cert, a, b = secret("cert"), ingress("a", "cert", "cert"), ingress("b", auth_secret="cert")
    selection = Selection(Flags())

    assert published(selection, put(cert, a, b), gone(a)) == {key_of(cert), key_of(b)}
    assert published(selection, gone(b)) == set()


@pytest.mark.parametrize("annotation", ["auth_secret", "auth_tls_secret", "proxy_ssl_secret"])
def test_annotations_refer_to_secrets_of_their_namespace(annotation: str) -> None:
    near, far = Key("Secret", "default", "s"), Key("Secret", "kube-system", "s")

    assert secrets_of_ingress(ingress("a", **{annotation: "default/s"}), cross_namespace=False) == {near}
    assert secrets_of_ingress(ingress("a", **{annotation: " s "}), cross_namespace=False) == {near}
    assert secrets_of_ingress(ingress("a", **{annotation: "kube-system/s"}), cross_namespace=False) == frozenset()
    assert secrets_of_ingress(ingress("a", **{annotation: "kube-system/s"}), cross_namespace=True) == {far}
    assert secrets_of_ingress(ingress("a", **{annotation: ""}), cross_namespace=True) == frozenset()


def test_the_administrator_allows_references_into_other_namespaces() -> None:
    config = ConfigMap(metadata=meta("ingress-nginx-controller", "ingress-nginx"), data={"allow-cross-namespace-resources": "true"})
    foreign, ing = secret("s", "other"), ingress("a", auth_secret="other/s")
    selection = Selection(Flags())

    assert published(selection, put(foreign, ing)) == {key_of(ing)}
    assert published(selection, put(config)) == {key_of(config), key_of(foreign)}
    assert published(selection, gone(config)) == set()
    assert selection.apply(put(config))[key_of(foreign)] == foreign
    assert selection.apply(gone(config))[key_of(foreign)] is None


def test_flags_and_the_configmap_refer_to_secrets() -> None:
    config = ConfigMap(metadata=meta("ingress-nginx-controller", "ingress-nginx"), data={"ssl-dh-param": "certs/dh"})
    default, dh = secret("wild", "certs"), secret("dh", "certs")

    assert published(Selection(Flags(default_ssl_certificate="certs/wild")), put(default, dh)) == {key_of(default)}
    assert published(Selection(Flags()), put(default, dh, config)) == {key_of(config), key_of(dh)}


def test_the_order_of_changes_does_not_show() -> None:
    config = ConfigMap(metadata=meta("ingress-nginx-controller", "ingress-nginx"), data={"allow-cross-namespace-resources": "true"})
    objects: list[AnyObject] = [secret("s", "other"), secret("t"), ingress("a", "t", auth_secret="other/s"), config]
    results = {frozenset(published(Selection(Flags()), *(put(o) for o in order))) for order in itertools.permutations(objects)}

    assert results == {frozenset(map(key_of, objects))}


def test_only_the_watched_namespace_and_what_flags_name() -> None:
    flags = Flags(watch_namespace="shop", default_ssl_certificate="certs/wild", default_backend_service="fallback/web")
    config = ConfigMap(metadata=meta("ingress-nginx-controller", "ingress-nginx"))
    inside = Service(metadata=meta("web", "shop"))
    outside = Service(metadata=meta("web", "blog"))
    backend = Service(metadata=meta("web", "fallback"))
    neighbour = Service(metadata=meta("db", "fallback"))
    slice_ = EndpointSlice(metadata=Metadata(name="web-1", namespace="fallback", labels={"kubernetes.io/service-name": "web"}))
    foreign_slice = EndpointSlice(metadata=Metadata(name="db-1", namespace="fallback", labels={"kubernetes.io/service-name": "db"}))
    cert = secret("wild", "certs")
    selection = Selection(flags)

    found = published(selection, put(config, inside, outside, backend, neighbour, slice_, foreign_slice, cert))

    assert found == {key_of(o) for o in (config, inside, backend, slice_, cert)}
    assert selection.apply(gone(slice_))[key_of(slice_)] is None


def test_a_class_stands_in_until_the_source_has_one() -> None:
    own = IngressClass(metadata=Metadata(name="mine"), spec=IngressClassSpec(controller="k8s.io/ingress-nginx"))
    foreign = IngressClass(metadata=Metadata(name="theirs"), spec=IngressClassSpec(controller="example.com/x"))
    taken = IngressClass(metadata=Metadata(name="nginx"), spec=IngressClassSpec(controller="example.com/x"))
    selection = Selection(Flags())

    first = selection.apply({})[CLASS]
    assert isinstance(first, IngressClass) and first.spec.controller == "k8s.io/ingress-nginx" and first.metadata.uid
    assert selection.apply({}) == {}
    assert CLASS not in selection.apply(put(foreign))
    assert selection.apply(put(own)) == {key_of(own): own, CLASS: None}
    assert selection.apply(gone(own)) == {key_of(own): None, CLASS: first}
    assert selection.apply(put(taken)) == {CLASS: taken}
    assert selection.apply(gone(taken)) == {CLASS: first}


def test_what_a_further_group_refers_to_is_published_too() -> None:
    further = Flags(configmap="ingress-nginx/internal", default_ssl_certificate="ingress-nginx/inside")
    selection = Selection(Flags(), further)
    own, theirs, plain = secret("inside", "ingress-nginx"), secret("dh", "ingress-nginx"), secret("plain", "ingress-nginx")
    config = ConfigMap(metadata=meta("internal", "ingress-nginx"), data={"ssl-dh-param": "ingress-nginx/dh"})

    assert published(selection, put(own, theirs, plain, config)) == {key_of(own), key_of(theirs), key_of(config)}
    assert published(selection, gone(config)) == set()
    assert selection.apply(put(theirs)) == {key_of(theirs): None}


def test_secrets_of_other_namespaces_are_published_while_any_group_allows_them() -> None:
    further = Flags(configmap="ingress-nginx/internal")
    selection = Selection(Flags(), further)
    theirs, ing = secret("users", "other"), ingress("a", auth_secret="other/users")
    names = ("internal", "ingress-nginx-controller")
    first, second = (ConfigMap(metadata=meta(n, "ingress-nginx"), data={"allow-cross-namespace-resources": "true"}) for n in names)

    assert key_of(theirs) not in published(selection, put(theirs, ing))
    assert key_of(theirs) in published(selection, put(first))
    assert selection.apply(put(second)) == {key_of(second): second}
    assert key_of(theirs) not in selection.apply(gone(first))
    assert selection.apply(gone(second)) == {key_of(second): None, key_of(theirs): None}
