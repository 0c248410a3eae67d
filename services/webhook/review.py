"""AdmissionReview v1: the request taken apart, the response put together. Every field is hostile text until checked."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from services.shared.contracts.problem import Problem, printable

API_VERSION: Final = "admission.k8s.io/v1"
MAX_WARNING: Final = 256
"""The API server cuts longer ones."""
MAX_SAID: Final = 16
"""Problems or warnings in one answer; the rest is counted."""


class NotAReview(Exception):
    """The body is JSON, but nothing this webhook can answer."""


class Review(Struct, frozen=True, kw_only=True):
    """One question of the API server."""

    uid: str
    operation: str
    namespace: str
    name: str
    object: dict[str, Any] | None
    """None: DELETE, CONNECT."""

    @property
    def needs_no_check(self) -> bool:
        """Nothing is going to be in effect: it is deleted, or being deleted."""
        metadata = self.object.get("metadata") if self.object else None
        return self.object is None or (isinstance(metadata, dict) and bool(metadata.get("deletionTimestamp")))


def read_review(body: Any) -> Review:
    """The review in a decoded body. Raises NotAReview."""
    if not isinstance(body, dict) or body.get("kind") != "AdmissionReview" or body.get("apiVersion") != API_VERSION:
        raise NotAReview(f"not an AdmissionReview of {API_VERSION}")
    request = body.get("request")
    if not isinstance(request, dict):
        raise NotAReview("the AdmissionReview holds no request")
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= 128 or printable(uid) != uid:
        raise NotAReview("request.uid is not an identifier")
    kind = request.get("kind")
    if not isinstance(kind, dict) or (kind.get("group"), kind.get("version"), kind.get("kind")) != ("networking.k8s.io", "v1", "Ingress"):
        raise NotAReview("not about an Ingress of networking.k8s.io/v1")
    obj = request.get("object")
    operation = _text(request, "operation")
    if operation in ("CREATE", "UPDATE"):
        if not isinstance(obj, dict):
            raise NotAReview("request.object is missing")
    else:
        obj = None
    return Review(uid=uid, operation=operation, namespace=_text(request, "namespace"), name=_text(request, "name"), object=obj)


def _text(request: dict[str, Any], field: str) -> str:
    """A name as it may go into messages; with `generateName` there is none yet."""
    value = request.get(field) or ""
    if not isinstance(value, str) or len(value) > 253 or printable(value) != value:
        raise NotAReview(f"request.{field} is not a name")
    return value


def allow(uid: str, warnings: tuple[Problem, ...] = (), notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The answer that lets it pass."""
    return _review({"uid": uid, "allowed": True}, warnings, notes)


def deny(uid: str, problems: tuple[Problem, ...], warnings: tuple[Problem, ...] = (), notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The answer that refuses it, with everything that is wrong."""
    said = [problem.sentence() for problem in problems[:MAX_SAID]]
    if len(problems) > MAX_SAID:
        said.append(f"and {len(problems) - MAX_SAID} more problems")
    status = {"status": "Failure", "code": 400, "reason": "BadRequest", "message": "; ".join(said)}
    return _review({"uid": uid, "allowed": False, "status": status}, warnings, notes)


def _review(response: dict[str, Any], warnings: tuple[Problem, ...], notes: tuple[str, ...]) -> dict[str, Any]:
    said = [*notes, *(warning.sentence() for warning in warnings)]
    if said:
        response["warnings"] = [_cut(text) for text in said[:MAX_SAID]]
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def _cut(text: str) -> str:
    return text if len(text) <= MAX_WARNING else text[: MAX_WARNING - 3] + "..."
