"""What kube-webhook-certgen does: a Secret with a CA and a certificate, and its CA in webhook configurations.

Its `--patch-failure-policy Ignore` has no effect in the original; here it is written.
"""

from __future__ import annotations

import base64
import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from services.shared.kube.client import Api, ApiError
from services.shared.telemetry.logs import get_logger
from services.webhook.certificate import generate

log = get_logger(__name__)

VALID_DAYS: Final = 100 * 365
"""As the original's: what is there is never renewed."""
NOT_FOUND: Final = 404
CONFLICT: Final = 409
TRIES: Final = 5


class CertgenError(Exception):
    """It cannot be done. The message says why and what would help."""


class Place(Struct, frozen=True, kw_only=True):
    """Where the material is."""

    namespace: str
    secret: str
    ca_key: str = "ca"
    """The Secret's key of the CA's certificate; of the others below."""
    certificate_key: str = "cert"
    private_key: str = "key"


async def create(api: Api, place: Place, hosts: list[str]) -> bool:
    """Make the Secret unless it has a CA already; whether it was made. Raises CertgenError, KubeError."""
    if await _ca(api, place) is not None:
        log.info("the secret exists already", secret=f"{place.namespace}/{place.secret}")
        return False
    material = generate(_names(hosts), valid_days=VALID_DAYS, traditional_key=True)
    data = {place.ca_key: material.ca, place.certificate_key: material.certificate, place.private_key: material.key}
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": place.secret, "namespace": place.namespace},
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }
    try:
        await api.request("POST", f"/api/v1/namespaces/{place.namespace}/secrets", body=body)
    except ApiError as error:
        if error.status == CONFLICT and await _ca(api, place) is not None:
            return False  # another Job made it meanwhile
        raise
    log.info("made", secret=f"{place.namespace}/{place.secret}", hosts=",".join(hosts))
    return True


def _names(hosts: list[str]) -> list[str]:
    """A certificate for a mistyped name would be refused much later, by the API server, with every Ingress."""
    names = [stripped for host in hosts if (stripped := host.strip())]
    bad = [n for n in names if not re.fullmatch(r"[0-9A-Za-z*]([-0-9A-Za-z.:]{0,251}[0-9A-Za-z])?|::[0-9A-Fa-f:.]*", n, re.ASCII)]
    if bad or not names:
        raise CertgenError(f"--host names the webhook, for example admission,admission.ingress.svc; not {', '.join(bad) or 'nothing'}")
    return names


async def _ca(api: Api, place: Place) -> bytes | None:
    """None: there is no such Secret."""
    try:
        answer = await api.request("GET", f"/api/v1/namespaces/{place.namespace}/secrets/{place.secret}")
    except ApiError as error:
        if error.status == NOT_FOUND:
            return None
        raise
    data = msgspec.json.decode(answer).get("data") or {}
    if place.ca_key not in data:
        raise CertgenError(
            f"Secret {place.namespace}/{place.secret} has no key `{place.ca_key}`: it is not one of ours; delete it or name another"
        )
    return base64.b64decode(data[place.ca_key])


class Patch(Struct, frozen=True, kw_only=True):
    """What to put the CA into."""

    webhook: str = ""
    """The name of the webhook configurations; empty: none."""
    api_service: str = ""
    validating: bool = True
    mutating: bool = True
    failure_policy: str = ""
    """Empty: left as it is; Ignore or Fail."""

    def problem(self) -> str:
        if not self.validating and not self.mutating and not self.api_service:
            return "there is nothing to patch: --patch-validating and --patch-mutating are false, and no --apiservice-name is given"
        if self.failure_policy not in ("", "Ignore", "Fail"):
            return f"--patch-failure-policy is Ignore or Fail, not {self.failure_policy!r}"
        if self.failure_policy and not (self.validating or self.mutating):
            return "--patch-failure-policy needs --patch-validating or --patch-mutating"
        return ""


async def patch(api: Api, place: Place, wanted: Patch) -> None:
    """Raises CertgenError, KubeError. Doing it again changes nothing."""
    problem = wanted.problem()
    if problem:
        raise CertgenError(problem)
    ca = await _ca(api, place)
    if ca is None:
        raise CertgenError(f"Secret {place.namespace}/{place.secret} does not exist; `sluice certgen create` makes it")
    bundle = base64.b64encode(ca).decode()
    if wanted.api_service:

        def trust(found: dict[str, Any]) -> None:
            found["spec"] |= {"caBundle": bundle, "insecureSkipTLSVerify": False}

        await _update(api, f"/apis/apiregistration.k8s.io/v1/apiservices/{wanted.api_service}", trust)

    def change(found: dict[str, Any]) -> None:
        for webhook in found.get("webhooks") or ():
            webhook["clientConfig"]["caBundle"] = bundle
            if wanted.failure_policy:
                webhook["failurePolicy"] = wanted.failure_policy

    for kind, selected in (("validatingwebhookconfigurations", wanted.validating), ("mutatingwebhookconfigurations", wanted.mutating)):
        if selected and wanted.webhook:
            await _update(api, f"/apis/admissionregistration.k8s.io/v1/{kind}/{wanted.webhook}", change)


async def _update(api: Api, path: str, change: Any) -> None:
    """Get, change, put; again when somebody else wrote in between."""
    for left in reversed(range(TRIES)):
        found = msgspec.json.decode(await api.request("GET", path))
        change(found)
        try:
            await api.request("PUT", path, body=found)
        except ApiError as error:
            if error.status != CONFLICT or not left:
                raise
            continue
        log.info("patched", path=path)
        return
