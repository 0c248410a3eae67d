"""Nothing, a push, or a reload: what a node must do to get from what it runs to what it should. Pure functions."""

from __future__ import annotations

from collections.abc import Container

from msgspec import Struct

from services.shared.contracts.version import OPTIONAL_SCOPES, PolicyBundle


class Decision(Struct, frozen=True, kw_only=True):
    """The next step."""

    push: bool
    """Rows differ from what is in nginx's memory."""
    reload: str = ""
    """Why nginx must be reloaded: `settings`, `table-memory`, `revert`, `policy`; empty: it need not."""

    @property
    def grow_first(self) -> bool:
        """The rows may not fit before the reload."""
        return self.reload == "table-memory"


def decide(
    *,
    bundle: PolicyBundle,
    loaded: PolicyBundle,
    refused: Container[str],
    tables_wanted: int,
    tables_bytes: int,
    settings_changed: bool,
    rows_behind: bool,
) -> Decision:
    """`bundle`: the newest version's policies; `loaded`: those nginx runs. Policies are additive: fewer of them are no reason, unless
    a whole scope is gone: its listeners are to be closed."""
    have = {p.hash for p in loaded.policies}
    gone = {p.scope for p in loaded.policies} & OPTIONAL_SCOPES - {p.scope for p in bundle.policies}
    if settings_changed:
        reload = "settings"
    elif tables_wanted > tables_bytes:
        reload = "table-memory"
    elif any(p.hash in refused for p in loaded.policies):
        reload = "revert"
    elif gone or any(p.hash not in have and p.hash not in refused for p in bundle.policies):
        reload = "policy"
    else:
        reload = ""
    return Decision(push=rows_behind, reload=reload)


def composed(bundle: PolicyBundle, stand_in: PolicyBundle, refused: Container[str]) -> PolicyBundle | None:
    """The bundle without what is refused: a location policy is left out, a global one is replaced by the first of its scope in `stand_in`.

    None: a global policy is refused, there is none to stand in for it, and nginx needs one.
    """
    stay = {p.scope: p for p in reversed(stand_in.policies) if p.scope != "location" and p.hash not in refused}
    out = []
    for policy in bundle.policies:
        if policy.hash not in refused:
            out.append(policy)
        elif policy.scope != "location":
            if policy.scope in stay:
                out.append(stay[policy.scope])
            elif policy.scope not in OPTIONAL_SCOPES:
                return None
    return PolicyBundle(policies=tuple(out))


def introduced(bundle: PolicyBundle, before: PolicyBundle) -> frozenset[str]:
    """Hashes of the policies that `bundle` has and `before` had not."""
    return frozenset(p.hash for p in bundle.policies) - {p.hash for p in before.policies}
