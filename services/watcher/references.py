"""Which Secrets leave the watcher: those that something published refers to, and no other. Pure."""

from __future__ import annotations

from typing import Final

from services.shared.contracts.objects import ConfigMap, Ingress, Key

ANNOTATION_PREFIX: Final = "nginx.ingress.kubernetes.io/"
SECRET_ANNOTATIONS: Final = ("auth-secret", "auth-tls-secret", "proxy-ssl-secret")
"""Annotations whose value is `name` or `namespace/name` of a Secret."""
SECRET_CONFIG_KEYS: Final = ("ssl-dh-param",)
"""Keys of the controller's ConfigMap whose value is `namespace/name` of a Secret."""
CROSS_NAMESPACE_KEY: Final = "allow-cross-namespace-resources"


def secrets_of_ingress(ingress: Ingress, *, cross_namespace: bool) -> frozenset[Key]:
    """The Secrets an Ingress refers to. One in a foreign namespace only where the administrator allows such references."""
    namespace = ingress.metadata.namespace
    names = [tls.secret_name for tls in ingress.spec.tls]
    names += [ingress.metadata.annotations.get(ANNOTATION_PREFIX + name, "") for name in SECRET_ANNOTATIONS]
    keys = (_secret(name.strip(), namespace) for name in names)
    return frozenset(key for key in keys if key is not None and (cross_namespace or key.namespace == namespace))


def secrets_of_config(config: ConfigMap | None) -> frozenset[Key]:
    """The Secrets the controller's ConfigMap refers to."""
    data = config.data if config else {}
    keys = (_secret(data.get(name, "").strip(), "") for name in SECRET_CONFIG_KEYS)
    return frozenset(key for key in keys if key is not None and key.namespace)


def allows_cross_namespace(config: ConfigMap | None) -> bool:
    """Has the administrator allowed references into other namespaces?"""
    return config is not None and config.data.get(CROSS_NAMESPACE_KEY, "").strip().lower() in {"true", "1", "t"}


def secret_named(reference: str) -> Key | None:
    """The Secret that a flag names as `namespace/name`."""
    key = _secret(reference.strip(), "")
    return key if key is not None and key.namespace else None


def _secret(reference: str, namespace: str) -> Key | None:
    if not reference:
        return None
    head, slash, tail = reference.partition("/")
    return Key("Secret", head, tail) if slash else Key("Secret", namespace, head)
