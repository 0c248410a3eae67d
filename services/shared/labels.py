"""Kubernetes label selectors as text: `team=shop,env!=test,tier in (web,api),!legacy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

_NAME: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY: Final = rf"(?:[a-z0-9](?:[-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}"
_SET: Final = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)", re.ASCII)
_EQUAL: Final = re.compile(rf"({_KEY})\s*(!=|==?)\s*({_NAME}|)", re.ASCII)
_PRESENT: Final = re.compile(rf"(!?)\s*({_KEY})", re.ASCII)
_VALUE: Final = re.compile(rf"{_NAME}|", re.ASCII)

Operator = Literal["in", "notin", "exists", "absent"]


class Requirement(Struct, frozen=True):
    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """As in Kubernetes, `notin` and `!=` match objects without the label, too."""
        match self.operator:
            case "in":
                return labels.get(self.key) in self.values
            case "notin":
                return labels.get(self.key) not in self.values
            case "exists":
                return self.key in labels
            case "absent":
                return self.key not in labels


class Selector(Struct, frozen=True):
    """All of its requirements must match; without any it matches everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(r.matches(labels) for r in self.requirements)


def parse_selector(text: str) -> Selector:
    """Raises ValueError, whose text names the part that cannot be read."""
    parts = re.split(r",(?![^()]*\))", text) if text.strip() else []
    return Selector(tuple(_requirement(part.strip()) for part in parts))


def _requirement(part: str) -> Requirement:
    if found := _SET.fullmatch(part):
        values = frozenset(v.strip() for v in found[3].split(","))
        if all(_VALUE.fullmatch(v) for v in values):
            return Requirement(found[1], "in" if found[2] == "in" else "notin", values)
    elif found := _EQUAL.fullmatch(part):
        return Requirement(found[1], "notin" if found[2] == "!=" else "in", frozenset([found[3]]))
    elif found := _PRESENT.fullmatch(part):
        return Requirement(found[2], "absent" if found[1] else "exists")
    raise ValueError(f"`{part[:80]}` is no requirement on labels")
