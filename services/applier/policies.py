"""The policies of one node: those of the newest version, those that nginx runs, those it ran before, and those it does not take."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Final

from services.applier.decide import composed, introduced
from services.applier.rollout import held_back
from services.shared.contracts.rollout import Gate
from services.shared.contracts.version import Manifest, PolicyBundle, bundle_digest

NONE: Final = PolicyBundle(policies=())


class Policies:
    """See the module. Knows nothing of nginx itself: what was loaded is told."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.newest = NONE
        """Of the newest version taken."""
        self.digest = ""
        """Of the newest."""
        self.loaded = NONE
        """What nginx runs."""
        self.before = NONE
        """What it ran before the last installation."""
        self.refused: dict[str, str] = {}
        """Hash -> why this node, or its nginx, does not take it."""
        self.gate: Gate | None = None
        """What the rollout lets in; set when it is heard of, and looked at by the next tick."""

    # --- what becomes of them

    def take(self, bundle: PolicyBundle, digest: str, refused: dict[str, str]) -> None:
        """A version was taken. `refused`: by this node's own look at its text."""
        self.newest, self.digest = bundle, digest
        self.judged(self.refused | refused)

    def believe(self, bundle: PolicyBundle) -> None:
        """Take a bundle for the newest, and for what nginx runs."""
        self.newest, self.digest = bundle, bundle_digest(bundle)
        self.loaded = self.before = bundle

    def forget(self) -> None:
        """Nothing is known of what nginx runs."""
        self.newest, self.digest = NONE, ""
        self.loaded = self.before = NONE

    def judged(self, refused: dict[str, str]) -> None:
        """What of this the newest version has is all that is refused."""
        known = {p.hash for p in self.newest.policies}
        self.refused = {h: words for h, words in refused.items() if h in known}

    def installed(self, bundle: PolicyBundle) -> None:
        """nginx runs these now."""
        self.before, self.loaded = self.loaded, bundle

    # --- what they are

    def held(self, manifest: Manifest | None) -> frozenset[str]:
        """Policies of the newest version that the rollout does not let in here yet. A node that runs nothing takes everything."""
        if manifest is None or not manifest.staged or not self.loaded.policies:
            return frozenset()
        return held_back(self.newest, self.digest, self.loaded, self.gate, self._node)

    @property
    def unloaded(self) -> frozenset[str]:
        """Policies of the newest version that nginx does not run, the refused ones aside."""
        return introduced(self.newest, self.loaded) - self.refused.keys()

    @property
    def fresh(self) -> frozenset[str]:
        """What the last installation brought; nothing if it was the first."""
        return introduced(self.loaded, self.before) if self.before.policies else frozenset()

    @property
    def locations(self) -> frozenset[str]:
        """Policies that rows may name."""
        return self.nameable(self.loaded)

    def nameable(self, bundle: PolicyBundle) -> frozenset[str]:
        """The same, once this bundle is loaded."""
        return frozenset(p.hash for p in bundle.policies if p.scope == "location") - self.refused.keys()

    @property
    def stand_in(self) -> PolicyBundle:
        """Where a global policy that is refused finds a predecessor."""
        return PolicyBundle(policies=self.loaded.policies + self.before.policies)

    def installable(self, held: Container[str], named: Callable[[], set[str]]) -> PolicyBundle:
        """What is let in of the newest version's policies, and those that live rows still name (`named`): some may have to wait."""
        bundle = composed(self.newest, self.loaded, held) or self.loaded
        have = {p.hash for p in bundle.policies}
        known = {p.hash: p for p in (*self.before.policies, *self.loaded.policies) if p.scope == "location"}
        spare = known.keys() - have - self.refused.keys()
        kept = spare & named() if spare else set[str]()
        return PolicyBundle(policies=(*bundle.policies, *(known[h] for h in sorted(kept))))
