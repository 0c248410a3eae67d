"""The TLS Secrets that Ingresses name: the certificate each has to offer, and what is wrong with it (behaviours §3.1)."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from typing import Final

from services.compiler.certificates import Certificate, certificate_of
from services.compiler.graph import Place
from services.compiler.ingresses import ReadIngress
from services.compiler.world import World
from services.shared.contracts.objects import Secret
from services.shared.contracts.problem import Problem, Reason, printable

NAMES_SHOWN: Final = 5
GOOD: Final = "a Secret of type kubernetes.io/tls, as `kubectl create secret tls` makes it"


class TLSSecrets:
    """`clock`: Unix seconds, for certificates that expire."""

    def __init__(self, world: World, clock: Callable[[], float] = time.time) -> None:
        self._world = world
        self._clock = clock
        self._last: dict[Place, Certificate] = {}
        """The last usable certificate of a Secret that has become garbage."""
        self._expiries: dict[Place, float] = {}
        """Ingress -> when the first of its certificates expires that has not."""

    def usable(self, namespace: str, name: str) -> Certificate | None:
        """The certificate; the last that was one, while the Secret is garbage; None when it is gone."""
        found = self._world.get(Secret, namespace, name)
        if found is None:
            return None
        certificate = certificate_of(found)
        if isinstance(certificate, str):
            return self._last.get((namespace, name))
        self._last[(namespace, name)] = certificate
        return certificate

    def deleted(self, secret: Place) -> None:
        self._last.pop(secret, None)

    def forget(self, ingress: Place) -> None:
        self._expiries.pop(ingress, None)

    def lapsed(self) -> set[Place]:
        """Ingresses a certificate of which has expired since its problems were told."""
        now = self._clock()
        return {place for place, expiry in self._expiries.items() if expiry <= now}

    def note_expiry(self, ingress: ReadIngress) -> None:
        """Its problems are being told: what time alone will add to them."""
        found = [self._world.get(Secret, ingress.namespace, name) for _, name in ingress.tls if name and not ingress.canary]
        ends = [c.not_after for secret in found if secret is not None and isinstance(c := certificate_of(secret), Certificate)]
        coming = [end for end in ends if end > self._clock()]
        place = (ingress.namespace, ingress.name)
        if coming:
            self._expiries[place] = min(coming)
        else:
            self.forget(place)

    def problems(self, ingress: ReadIngress) -> Iterator[Problem]:
        """Of its `spec.tls`. All are warnings: its hosts are served, with another certificate than the author wants or clients trust."""
        for n, (hosts, name) in enumerate(ingress.tls if not ingress.canary else ()):
            if name:
                yield from self._of_entry(ingress, f"spec.tls[{n}]", hosts, name)

    def _of_entry(self, ingress: ReadIngress, field: str, hosts: tuple[str, ...], name: str) -> Iterator[Problem]:
        secret = f"{ingress.namespace}/{name}"
        found = self._world.get(Secret, ingress.namespace, name)
        if found is None:
            message = f"names the Secret {secret}, which does not exist: the default certificate is shown"
            yield _problem(Reason.REFERENCE_NOT_FOUND, f"{field}.secretName", message, GOOD)
            return
        certificate = certificate_of(found)
        if isinstance(certificate, str):
            stands = "the last good one" if (ingress.namespace, name) in self._last else "the default certificate"
            message = f"names the Secret {secret}, which cannot be used: {certificate}; {stands} is shown"
            yield _problem(Reason.INVALID_CERTIFICATE, f"{field}.secretName", message, GOOD)
            return
        for h, host in enumerate(hosts):
            if not certificate.valid_for(host):
                message = f"the certificate of Secret {secret} is for {_list(certificate.names)}, not for {printable(host)}"
                yield _problem(Reason.INVALID_CERTIFICATE, f"{field}.hosts[{h}]", f"{message}: the default certificate is shown there")
        if certificate.not_after <= self._clock():
            message = f"the certificate of Secret {secret} expired at {_date(certificate.not_after)}: it is shown, and clients refuse it"
            yield _problem(Reason.CERTIFICATE_EXPIRED, f"{field}.secretName", message)

    def problems_of_default(self, namespace: str, name: str) -> tuple[Problem, ...]:
        """Of the Secret that `--default-ssl-certificate` names."""
        found = self._world.get(Secret, namespace, name)
        wrong = "does not exist" if found is None else certificate_of(found)
        if isinstance(wrong, Certificate):
            return ()
        stands = "the last good one" if (namespace, name) in self._last else "one that is signed by nobody"
        message = f"is named by --default-ssl-certificate and cannot be used: {wrong}; {stands} is shown"
        return (_problem(Reason.INVALID_CERTIFICATE, "data", message, GOOD),)


def _problem(reason: Reason, field: str, message: str, example: str = "") -> Problem:
    return Problem(reason=reason, field=field, message=message, example=example, severity="warning")


def _list(names: tuple[str, ...]) -> str:
    shown = [printable(n) for n in names[:NAMES_SHOWN]] + (["..."] if len(names) > NAMES_SHOWN else [])
    return ", ".join(shown) or "no host"


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
