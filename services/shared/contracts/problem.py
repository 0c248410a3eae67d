"""What is wrong with a user's object: a value, never an exception. Status, Events and the webhook show the same words."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from msgspec import Struct


class Reason(StrEnum):
    """Why; stable, CamelCase as Kubernetes reasons are."""

    INVALID_OBJECT = "InvalidObject"
    INVALID_ANNOTATION = "InvalidAnnotation"
    RISK_TOO_HIGH = "RiskTooHigh"
    SNIPPETS_DISABLED = "SnippetsDisabled"
    BLOCKED_WORD = "BlockedWord"
    UNKNOWN_ANNOTATION = "UnknownAnnotation"
    NOT_HONOURED = "NotHonoured"
    INVALID_HOST = "InvalidHost"
    INVALID_PATH = "InvalidPath"
    INVALID_REGEX = "InvalidRegex"
    PATH_CONFLICT = "PathConflict"
    SERVICE_NOT_FOUND = "ServiceNotFound"
    PORT_NOT_FOUND = "PortNotFound"
    NO_ENDPOINTS = "NoEndpoints"
    REFERENCE_NOT_FOUND = "ReferenceNotFound"
    REFERENCE_FORBIDDEN = "ReferenceForbidden"
    INVALID_CERTIFICATE = "InvalidCertificate"
    CERTIFICATE_EXPIRED = "CertificateExpired"
    INVALID_CONFIG_KEY = "InvalidConfigKey"
    CANARY_UNMATCHED = "CanaryUnmatched"
    TOO_LARGE = "TooLarge"
    REFUSED_BY_NGINX = "RefusedByNginx"
    UNREADABLE_FILE = "UnreadableFile"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    INTERNAL = "Internal"


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with one object."""

    reason: Reason
    field: str
    """The path of the field: `metadata.annotations[nginx.ingress.kubernetes.io/limit-rps]`, `spec.rules[0].host`, or `file:line`."""
    message: str
    """One sentence: what is wrong. Control bytes escaped, at most 256 bytes of the user's text."""
    example: str = ""
    """What a good value looks like; empty where there is none to give."""
    object: str = ""
    """`Ingress default/shop`: set where the reader does not know it from elsewhere."""
    severity: Literal["error", "warning"] = "error"
    """error: (part of) the object is not in effect; warning: it is, but not all of it means what its author may think."""

    @property
    def of_one_object(self) -> bool:
        """Nothing but `object` is affected."""
        return bool(self.object) and self.reason not in (Reason.SOURCE_UNREACHABLE, Reason.UNREADABLE_FILE)

    def sentence(self) -> str:
        """For people: object, field, problem, good value."""
        where = f"{self.object}: {self.field}" if self.object else self.field
        return f"{where}: {self.message}" + (f"; for example {self.example}" if self.example else "")


class Verdict(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the compiler made of one object (bucket `verdicts`). An object without problems has no verdict stored."""

    kind: str
    namespace: str
    name: str
    accepted: bool
    """False: the object as it stands is not in effect (its last good form, where there is one, is)."""
    problems: tuple[Problem, ...] = ()


_LIMIT = 256


def printable(text: str) -> str:
    """User text as it may appear in messages, logs and labels: control and non-ASCII bytes escaped, at most 256 characters."""
    escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in text[: _LIMIT + 1])
    return escaped if len(escaped) <= _LIMIT else escaped[: _LIMIT - 3] + "..."
