"""Which Ingresses are ours (behaviours §2). Unlike ingress-nginx, an IngressClass that appears later adopts the Ingresses that name it."""

from __future__ import annotations

from collections.abc import Callable

from services.shared.contracts.objects import Ingress, IngressClass
from services.shared.flags import Flags

CLASS_ANNOTATION = "kubernetes.io/ingress.class"


FindClass = Callable[[str], IngressClass | None]
"""An IngressClass by name."""


def is_ours(ingress: Ingress, find: FindClass, flags: Flags) -> bool:
    """spec.ingressClassName decides alone where set; else the annotation; else --watch-ingress-without-class."""
    if flags.watch_namespace and ingress.metadata.namespace != flags.watch_namespace:
        return False
    name = ingress.spec.ingress_class_name
    if name is not None:
        found = find(name)
        if found is None:
            return False
        return found.spec.controller == flags.controller_class or (flags.ingress_class_by_name and name == flags.ingress_class)
    annotation = ingress.metadata.annotations.get(CLASS_ANNOTATION)
    if annotation is not None:
        return annotation == flags.ingress_class
    return flags.watch_ingress_without_class
