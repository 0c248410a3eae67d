"""What admission says of an Ingress: a pure function of the object and of what the engine knows (behaviours §21)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from services.compiler.crashes import failpoint
from services.compiler.engine import Engine
from services.compiler.ingresses import ReadIngress, read_ingress
from services.shared.checks.classes import is_ours
from services.shared.checks.ingress import check_ingress
from services.shared.contracts.objects import Ingress, Service
from services.shared.contracts.problem import Problem, Reason, printable
from services.shared.contracts.question import AdmissionAnswer, AdmissionQuestion


def admit(engine: Engine, question: AdmissionQuestion) -> AdmissionAnswer:
    """Allowed or not, with every problem and warning."""
    who = f"Ingress {printable(question.namespace)}/{printable(question.name)}"
    try:
        ingress = msgspec.convert(question.object, Ingress)
    except msgspec.ValidationError as error:
        return AdmissionAnswer(allowed=False, problems=(replace(_undecodable(error), object=who),))
    meta = replace(ingress.metadata, namespace=question.namespace or ingress.metadata.namespace)
    ingress = replace(ingress, metadata=meta)
    if meta.deletion_timestamp or not is_ours(ingress, engine.world.ingress_class, engine.flags):
        return AdmissionAnswer(allowed=True)
    failpoint("admit", (rule.host for rule in ingress.spec.rules))
    read = read_ingress(ingress, engine.settings)
    problems = list(read.problems)
    if engine.settings.strict_validate_path_type and not (read.settings.use_regex or read.settings.rewrite_target):
        known = set(problems)
        problems += [p for p in check_ingress(ingress, strict_paths=True) if p not in known]
    problems += _overlaps(engine, read)
    warnings = [p for p in problems if p.severity == "warning"] + [*_absent(engine, read), *engine.tls.problems(read)]
    errors = [p for p in problems if p.severity == "error"]
    return AdmissionAnswer(
        allowed=not errors,
        problems=tuple(replace(p, object=who) for p in errors),
        warnings=tuple(replace(p, object=who) for p in warnings),
    )


def _undecodable(error: msgspec.ValidationError) -> Problem:
    text, _, path = str(error).partition(" - at `$")
    return Problem(reason=Reason.INVALID_OBJECT, field=path.strip("`.") or "object", message=printable(text.replace("`", "")))


def _overlaps(engine: Engine, candidate: ReadIngress) -> Iterator[Problem]:
    """The same host and path in another Ingress: an error where both are canaries or neither is. Never on data that is not there."""
    for rule in candidate.paths:
        lowered = engine.hosts.get(rule.host)
        for location in lowered.locations if lowered else ():
            owner = location.ingress
            if owner is None or location.automatic or owner.ref == candidate.ref or location.path != rule.path:
                continue
            if owner.canary == candidate.canary:
                yield Problem(
                    reason=Reason.PATH_CONFLICT,
                    field=f"{rule.field}.path",
                    message=f"host {rule.host} and path {rule.path} already belong to Ingress {owner.ref}",
                    example="another path, or the canary annotation",
                )
                break


def _absent(engine: Engine, candidate: ReadIngress) -> Iterator[Problem]:
    for rule in candidate.paths:
        if rule.backend is not None and engine.world.get(Service, rule.backend.namespace, rule.backend.service) is None:
            yield Problem(
                reason=Reason.SERVICE_NOT_FOUND,
                field=f"{rule.field}.backend.service.name",
                message=f"there is no Service {rule.backend.namespace}/{rule.backend.service} yet: requests get 503 until there is",
                severity="warning",
            )
