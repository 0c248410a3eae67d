"""What admission says of an Ingress: a pure function of the object and of what the engine knows (behaviours §21)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from services.compiler.annotations.registry import PREFIX
from services.compiler.backends import absent
from services.compiler.crashes import failpoint
from services.compiler.engine import Engine
from services.compiler.ingresses import PathRule, ReadIngress, read_ingress
from services.shared.checks.classes import is_ours
from services.shared.checks.ingress import check_ingress
from services.shared.contracts.objects import Ingress
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
    problems += _overlaps(engine, read, _explicit(ingress))
    warnings = [p for p in problems if p.severity == "warning"] + [*absent(read, engine.world), *engine.tls.problems(read)]
    errors = [p for p in problems if p.severity == "error"]
    return AdmissionAnswer(
        allowed=not errors,
        problems=tuple(replace(p, object=who) for p in errors),
        warnings=tuple(replace(p, object=who) for p in warnings),
    )


def _undecodable(error: msgspec.ValidationError) -> Problem:
    text, _, path = str(error).partition(" - at `$")
    return Problem(reason=Reason.INVALID_OBJECT, field=path.strip("`.") or "object", message=printable(text.replace("`", "")))


def _overlaps(engine: Engine, candidate: ReadIngress, explicit: bool) -> Iterator[Problem]:
    """The same host and path in another Ingress: an error where both are canaries, or neither says anything of canaries (behaviours §21.9;
    `explicit`: the candidate does). Never on data that is not there."""
    for host in dict.fromkeys(rule.host for rule in candidate.paths):
        others = [o for o in engine.graph.of_host(host) if o.ref != candidate.ref and o.canary == candidate.canary]
        literal = not candidate.uses_regex and not any(o.uses_regex for o in others)
        owners = {at: (o, r) for o in reversed(others) for r in reversed(o.paths) if r.host == host for at in _places(r, literal)}
        for rule in candidate.paths:
            owner, theirs = next((owners[at] for at in _places(rule, literal) if at in owners), (None, rule))
            if rule.host != host or owner is None:
                continue
            if candidate.canary or not (explicit or _explicit(engine.world.get(Ingress, owner.namespace, owner.name))):
                yield Problem(
                    reason=Reason.PATH_CONFLICT,
                    field=f"{rule.field}.path",
                    message=f"host {host} and path {theirs.path} already belong to Ingress {owner.ref}",
                    example="another path, or the canary annotation",
                )


def _places(rule: PathRule, literal: bool) -> Iterator[tuple[str, str]]:
    """What no other Ingress may have: the text in any type, and, where no path of the host is a regex, Prefix `/foo` is Prefix `/foo/`."""
    yield "text", rule.path
    if literal and rule.path_type == "Prefix":
        yield "location", rule.path.rstrip("/")


def _explicit(ingress: Ingress | None) -> bool:
    """Whether it says that it is a canary, or that it is not."""
    return ingress is not None and f"{PREFIX}canary" in ingress.metadata.annotations
