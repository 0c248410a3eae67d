"""The registry itself: what an entry is, and how an Ingress's annotations are read with all of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from services.compiler import known
from services.compiler.annotations.settings import IngressSettings
from services.compiler.settings import GlobalSettings
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.nginxtext.arguments import TextError

PREFIX: Final = "nginx.ingress.kubernetes.io/"


class Risk(StrEnum):
    """How much harm a value can do; above the ConfigMap's annotations-risk-level the whole Ingress is refused."""

    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"
    CRITICAL = "Critical"


RISKS: Final = (Risk.LOW, Risk.MEDIUM, Risk.HIGH, Risk.CRITICAL)


class Invalid(StrEnum):
    """What an invalid value does."""

    REJECT = "the Ingress is refused"
    DENY = "its routes answer 503"
    DEFAULT = "the default holds"


class Annotation(Struct, frozen=True, kw_only=True):
    """One entry."""

    name: str
    """Without the prefix."""
    parse: Callable[[str], Any]
    """Trimmed, non-empty text -> typed value; raises TextError with what a good value looks like."""
    effect: str
    """One sentence for `sluice annotations`."""
    risk: Risk = Risk.LOW
    scope: Literal["Ingress", "Location"] = "Location"
    kind: Literal["data", "policy"] = "data"
    """What a change of it costs: a row, or, where no route has such a policy yet, a reload."""
    invalid: Invalid = Invalid.REJECT
    example: str = ""
    needs: str = ""
    """The annotation without which it means nothing, so that a bad value of it closes nothing."""

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def good_value(self) -> str:
        """`example`, or the default as one would write it."""
        default = self.default
        return self.example or (str(default).lower() if isinstance(default, bool) else str(default) if isinstance(default, int) else "true")

    @property
    def default(self) -> Any:
        return getattr(_DEFAULTS, self.field)


_DEFAULTS: Final = IngressSettings()


class ReadAnnotations(Struct, frozen=True, kw_only=True):
    """What the annotations of one Ingress say."""

    settings: IngressSettings
    problems: tuple[Problem, ...] = ()
    rejected: bool = False
    """The whole Ingress is not in effect."""
    denied: bool = False
    """Its routes answer 503: a security setting is unusable, so they must not be open."""


def read(
    annotations: Mapping[str, str], settings: GlobalSettings, entries: Mapping[str, Annotation], *, snippets: bool = True
) -> ReadAnnotations:
    """Read all annotations with our prefix. `snippets`: whether the administrator allows them."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    rejected = denied = False
    for key in sorted(annotations):
        text = "\n".join(line.strip() for line in annotations[key].split("\n")).strip()
        if key.endswith("-snippet") and not snippets and text:
            problems.append(_snippet(key))
            rejected = True
            continue
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        refused = _refused_word(key, text, settings.annotation_value_word_blocklist)
        entry = entries.get(name)
        if refused is None and entry is not None and _too_risky(entry, settings):
            refused = Problem(
                reason=Reason.RISK_TOO_HIGH,
                field=_field(key),
                message=f"has risk {entry.risk}, and the administrator accepts {settings.annotations_risk_level} at most",
            )
        if refused is not None:
            problems.append(refused)
            rejected = True
            continue
        if entry is None:
            guards = known.GUARDS.get(name)
            closes = bool(text) and guards is not None and text.lower().startswith(guards)
            problems.append(_unhonoured_guard(key) if closes else _unknown(key, name, entries))
            denied |= closes
            continue
        if not text:
            continue  # empty counts as unset
        try:
            values[entry.field] = entry.parse(text)
        except TextError as error:
            if entry.needs and not annotations.get(f"{PREFIX}{entry.needs}", "").strip():
                problems.append(_idle(entry, key, text, str(error)))
                continue
            problems.append(_invalid(entry, key, text, str(error)))
            rejected |= entry.invalid is Invalid.REJECT
            denied |= entry.invalid is Invalid.DENY
    parsed = msgspec.structs.replace(_DEFAULTS, **values) if values else _DEFAULTS
    return ReadAnnotations(settings=parsed, problems=tuple(problems), rejected=rejected, denied=denied)


def _field(key: str) -> str:
    return f"metadata.annotations[{printable(key)}]"


def _too_risky(entry: Annotation, settings: GlobalSettings) -> bool:
    return RISKS.index(entry.risk) > RISKS.index(Risk(settings.annotations_risk_level))


def _snippet(key: str) -> Problem:
    return Problem(
        reason=Reason.SNIPPETS_DISABLED,
        field=_field(key),
        message="snippets are off; only the administrator can allow them, with allow-snippet-annotations in the controller ConfigMap",
    )


def _refused_word(key: str, text: str, words: tuple[str, ...]) -> Problem | None:
    for word in words:
        if word in text:
            return Problem(
                reason=Reason.BLOCKED_WORD,
                field=_field(key),
                message=f'contains the word "{printable(word)}", which the administrator has blocked',
            )
    return None


def _invalid(entry: Annotation, key: str, text: str, good: str) -> Problem:
    fatal = entry.invalid is not Invalid.DEFAULT
    return Problem(
        reason=Reason.INVALID_ANNOTATION,
        field=_field(key),
        message=f'"{printable(text)}" is not {good}; {entry.invalid}',
        example=entry.good_value,
        severity="error" if fatal else "warning",
    )


def _idle(entry: Annotation, key: str, text: str, good: str) -> Problem:
    return Problem(
        reason=Reason.INVALID_ANNOTATION,
        field=_field(key),
        message=f'"{printable(text)}" is not {good}; it has no effect without {entry.needs}',
        example=entry.good_value,
        severity="warning",
    )


def _unhonoured_guard(key: str) -> Problem:
    return Problem(
        reason=Reason.NOT_HONOURED,
        field=_field(key),
        message="guards these routes in ingress-nginx and is not honoured yet: they answer 503 as long as it is there",
    )


def _unknown(key: str, name: str, entries: Mapping[str, Annotation]) -> Problem:
    if name in known.ANNOTATIONS:
        return Problem(
            reason=Reason.NOT_HONOURED,
            field=_field(key),
            message="is known to ingress-nginx and not honoured yet: it has no effect",
            severity="warning",
        )
    near = difflib.get_close_matches(name, known.ANNOTATIONS, n=1)
    return Problem(
        reason=Reason.UNKNOWN_ANNOTATION,
        field=_field(key),
        message="is not a known annotation" + (f"; did you mean {near[0]}?" if near else ""),
        severity="warning",
    )
