"""What an Ingress by itself tells: the checks that need no other object, for when the compiler is silent."""

from __future__ import annotations

from typing import Any

import msgspec

from services.shared.checks.ingress import check_ingress
from services.shared.contracts.objects import Ingress
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.contracts.question import AdmissionAnswer


def check_alone(obj: dict[str, Any]) -> AdmissionAnswer:
    """Hostile or malformed: denied. Everything else passes; whoever asked adds that cross-object checks were skipped."""
    metadata = obj.get("metadata")
    named = {"name": ""} | metadata if isinstance(metadata, dict) else metadata
    try:
        ingress = msgspec.convert(obj | {"metadata": named}, Ingress)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        problem = Problem(reason=Reason.INVALID_OBJECT, field=path.strip("`.") or "metadata", message=printable(message.replace("`", "")))
        return AdmissionAnswer(allowed=False, problems=(problem,))
    # Whether paths are checked strictly is a global setting, which only the compiler knows.
    problems = tuple(check_ingress(ingress, strict_paths=False))
    errors = tuple(problem for problem in problems if problem.severity == "error")
    warnings = tuple(problem for problem in problems if problem.severity != "error")
    return AdmissionAnswer(allowed=not errors, problems=errors, warnings=warnings)
