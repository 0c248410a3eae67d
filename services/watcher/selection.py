"""What the source holds in; what is published of it, out. Incremental, pure, and the same whatever the order of changes.

- Only namespaces that count (`namespaces`).
- Only Secrets that something refers to (`references`). This is also where they will be sealed.
- An IngressClass for the controller where the source has none, as the chart would install it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from services.shared.contracts.objects import (
    AnyObject,
    ConfigMap,
    Ingress,
    IngressClass,
    IngressClassSpec,
    Key,
    Metadata,
    key_of,
)
from services.shared.flags import Flags
from services.watcher import normalize
from services.watcher.changes import ObjectChanges
from services.watcher.namespaces import Namespaces, pair
from services.watcher.references import allows_cross_namespace, secret_named, secrets_of_config, secrets_of_ingress


class Selection:
    """See the module."""

    def __init__(self, flags: Flags, *further: Flags) -> None:
        """`further`: of other groups of nodes. What any group refers to is published; each compiler looks at what is its own."""
        self._flags = flags
        self._namespaces = Namespaces(flags, *further)
        self._config_keys = frozenset(Key("ConfigMap", *pair(f.configmap)) for f in (flags, *further))
        self._always = frozenset(key for f in (flags, *further) if (key := secret_named(f.default_ssl_certificate)))
        self._secrets: dict[Key, AnyObject] = {}
        self._ingresses: dict[Key, Ingress] = {}
        self._classes: dict[Key, IngressClass] = {}
        self._configs: dict[Key, ConfigMap] = {}
        self._references: dict[Key, frozenset[Key]] = {}
        self._referenced = Counter(self._always)
        self._stand_in = implicit_class(flags)
        self._implicit: IngressClass | None = None

    def apply(self, changes: ObjectChanges) -> ObjectChanges:
        """The published counterpart of a set of changes."""
        out: ObjectChanges = {}
        touched: set[Key] = set()  # Secrets whose standing may be another now
        for key, obj in self._namespaces.visible(changes).items():
            if key.kind == "Secret":
                _put(self._secrets, key, obj)
                touched.add(key)
                continue
            out[key] = obj
            if key.kind == "Ingress":
                _put(self._ingresses, key, obj)
                touched |= self._refer(key, self._of_ingress(key))
            elif key.kind == "IngressClass":
                _put(self._classes, key, obj)
            elif key in self._config_keys:
                touched |= self._configure(key, obj if isinstance(obj, ConfigMap) else None)
        for key in touched:
            out[key] = self._secrets.get(key) if self._referenced[key] > 0 else None
        out.update(self._class_changes(out))
        return out

    # --- Secrets

    def _of_ingress(self, key: Key) -> frozenset[Key]:
        ingress = self._ingresses.get(key)
        return secrets_of_ingress(ingress, cross_namespace=self._across()) if ingress else frozenset()

    def _refer(self, source: Key, new: frozenset[Key]) -> frozenset[Key]:
        """Count references from one object; returns the Secrets concerned."""
        old = self._references.pop(source, frozenset())
        self._referenced.subtract(old)
        self._referenced.update(new)
        if new:
            self._references[source] = new
        for key in old:
            if self._referenced[key] <= 0:
                del self._referenced[key]
        return old ^ new

    def _across(self) -> bool:
        """Whether some group's Ingresses may refer to Secrets of other namespaces."""
        return any(allows_cross_namespace(self._configs.get(key)) for key in self._config_keys)

    def _configure(self, key: Key, config: ConfigMap | None) -> set[Key]:
        """Take a group's ConfigMap into account; returns the Secrets concerned."""
        before = self._across()
        _put(self._configs, key, config)
        touched = set(self._refer(key, secrets_of_config(config)))
        if self._across() != before:
            for ingress in self._ingresses:
                touched |= self._refer(ingress, self._of_ingress(ingress))
        return touched

    # --- the implicit IngressClass

    def _class_changes(self, out: ObjectChanges) -> ObjectChanges:
        """The implicit class comes with the last explicit class of our controller gone, and goes with the first."""
        key = key_of(self._stand_in)
        ours = any(c.spec.controller == self._flags.controller_class for c in self._classes.values())
        wanted = None if ours or key in self._classes else self._stand_in
        if wanted == self._implicit and key not in out:
            return {}
        self._implicit = wanted
        return {key: wanted or self._classes.get(key)}


def implicit_class(flags: Flags) -> IngressClass:
    """The IngressClass that the chart would install."""
    metadata = Metadata(name=flags.ingress_class, labels={"app.kubernetes.io/managed-by": "sluice"})
    return normalize.with_identity(IngressClass(metadata=metadata, spec=IngressClassSpec(controller=flags.controller_class)))


def _put(store: dict[Key, Any], key: Key, obj: AnyObject | None) -> None:
    if obj is None:
        store.pop(key, None)
    else:
        store[key] = obj
