"""Questions and answers over request/reply. Every answer says why where it says no."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from services.shared.contracts.problem import Problem


class AdmissionQuestion(Struct, frozen=True, kw_only=True):
    """webhook -> compiler: would this Ingress be accepted, given everything else there is?"""

    namespace: str
    name: str
    operation: str
    """CREATE or UPDATE."""
    object: dict[str, Any]
    """The AdmissionReview's object, not yet trusted."""


class AdmissionAnswer(Struct, frozen=True, kw_only=True):
    allowed: bool
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


class BarrierQuestion(Struct, frozen=True, kw_only=True):
    """-> watcher: look at the source now."""


class BarrierAnswer(Struct, frozen=True, kw_only=True):
    """Everything the source held when the question arrived is in the CLUSTER stream at or before `sequence`."""

    sequence: int
    problems: tuple[Problem, ...] = ()
    """What could not be read or published, and so is not covered. With `object`: that one alone."""
    again: bool = False
    """Who answers does not lead any more, and covers nothing: ask again."""


class CoverQuestion(Struct, frozen=True, kw_only=True):
    """-> compiler: which version covers this sequence? The answer is held back until there is one."""

    sequence: int
    ingress: str = ""
    """`namespace/name`: also say what became of it."""


class CoverAnswer(Struct, frozen=True, kw_only=True):
    epoch: int
    number: int
    """The newest version that covers the sequence; with no change in content, one that existed before."""
    digest: str
    pinned: int = 0
    found: bool = True
    """False: the Ingress asked for does not exist (or is being deleted, or is not of our class)."""
    accepted: bool = True
    problems: tuple[Problem, ...] = ()
    row_keys: tuple[str, ...] = ()
    """The host rows that the Ingress asked for is part of, to compare with a node's deferred rows."""
    error: str = ""
    """Not empty: no version covers it, and why (the compiler has not synced, no commit was possible)."""


class ExplainQuestion(Struct, frozen=True, kw_only=True):
    url: str
    method: str = "GET"


class ExplainAnswer(Struct, frozen=True, kw_only=True):
    """Why a URL goes where it goes. Plain data, printed as it is with --json."""

    host: str
    matched_host: str
    """The row that answers: the host itself, `*.parent`, an alias's target, or `_`; empty: nginx refuses the request before it asks."""
    path: str
    """As locations are matched: decoded once, `//` and dot segments resolved. Bytes that are no UTF-8 are shown as `\\xff`."""
    matched_path: str = ""
    path_type: str = ""
    match: str = ""
    """How: `exact`, `prefix`, `regex`, `default`."""
    ingress: str = ""
    rule: str = ""
    """`spec.rules[0].http.paths[1]`."""
    policy: str = ""
    policy_text: str = ""
    backend: str = ""
    endpoints: tuple[str, ...] = ()
    certificate: str = ""
    notes: tuple[str, ...] = ()
    """In the order of processing: redirects, access control, canaries, why others lost."""
    problems: tuple[Problem, ...] = ()
    status: int = 0
    """What nginx answers itself; 0: `backend` does. `notes` name clients that get another answer."""
    version: str = ""
    """`epoch.number` of the version that this is the answer of; empty: there is none yet."""
    pinned: int = 0
    """The version that a rollback holds; 0: none."""


class RollbackQuestion(Struct, frozen=True, kw_only=True):
    number: int = 0
    """The version whose content to return to; 0 with `release`."""
    epoch: int = 0
    """Of that version; 0: of equal numbers, the newest epoch's."""
    release: bool = False


class RollbackAnswer(Struct, frozen=True, kw_only=True):
    epoch: int = 0
    number: int = 0
    """The new version."""
    error: str = ""
