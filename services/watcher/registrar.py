"""Who is a node: a question with a pod's token in, a credential for that node, or why not, out. Kubernetes says whose token it is."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from services.shared.bus.port import Bus, BusError, Request
from services.shared.contracts.enrolment import AUDIENCE, Enrol, Enrolled, decode_enrol
from services.shared.contracts.subjects import ASK_WATCHER_ENROL, REVOKED_BUCKET, bucket_subject, token
from services.shared.kube.client import Api, KubeError
from services.shared.natsauth import registrar
from services.shared.natsauth.registrar import BadRequest
from services.shared.telemetry.logs import get_logger
from services.watcher.options import RegistrarOptions

log = get_logger(__name__)

CREDENTIAL_SECONDS: Final = 3600.0
"""A node that is revoked is out after so long at the latest. Nodes ask again after half of it."""
LONGEST_QUESTION: Final = 16 << 10
REVIEWS: Final = "/apis/authentication.k8s.io/v1/tokenreviews"
NODE_CLAIM: Final = "authentication.kubernetes.io/node-name"
POD_CLAIM: Final = "authentication.kubernetes.io/pod-name"


class _User(Struct, frozen=True):
    username: str = ""
    extra: dict[str, tuple[str, ...]] = {}


class _ReviewStatus(Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: tuple[str, ...] = ()
    error: str = ""


class _Review(Struct, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class Registrar:
    """A handler for the bus. Any number of watchers may answer: nothing is kept."""

    def __init__(self, bus: Bus, api: Api, options: RegistrarOptions) -> None:
        self._bus = bus
        self._api = api
        self._options = options

    async def serve(self) -> None:
        """From now on. Raises what the bus raises."""
        await self._bus.serve(ASK_WATCHER_ENROL, self.enrol, queue="watcher")

    async def enrol(self, request: Request) -> bytes:
        try:
            question = self._question(request.payload)
            answer = Enrolled(jwt=await self._admit(question))
            log.info("a node has a credential", node=question.node, group=question.group)
        except BadRequest as error:
            log.warning("a node gets no credential", reason=error)
            answer = Enrolled(refused=str(error))
        return msgspec.json.encode(answer)

    def _question(self, payload: bytes) -> Enrol:
        try:
            if len(payload) <= LONGEST_QUESTION:
                return decode_enrol(payload)
        except (msgspec.DecodeError, RecursionError):
            pass
        raise BadRequest("this is no question for a credential")

    async def _admit(self, question: Enrol) -> str:
        user = await self._reviewed(question.token)
        prefix, _, account = user.username.partition("system:serviceaccount:")
        group = self._options.accounts.get(account.replace(":", "/")) if not prefix else None
        if group is None:
            raise BadRequest(f"pods of {user.username[:253]!r} are no edge nodes")
        if group != question.group:
            raise BadRequest(f"nodes of {account} are of group {group}, not {question.group[:63]!r}")
        names = {name for claim in (NODE_CLAIM, POD_CLAIM) for name in user.extra.get(claim, ())}
        if question.node not in names:
            raise BadRequest(f"the token is for {' on '.join(sorted(names)) or 'no pod'}, not for {question.node[:253]!r}")
        await self._not_revoked(question.node)
        try:
            key = registrar.decode_key(self._options.key.read_bytes())
        except (OSError, ValueError) as error:
            log.error("nothing to sign credentials with", error=error)
            raise BadRequest("the watcher has no key to sign with") from error
        return registrar.sign(key, node=question.node, group=group, public=question.public, seconds=CREDENTIAL_SECONDS)

    async def _reviewed(self, text: str) -> _User:
        if not text:
            raise BadRequest("there is no token in the question")
        body: dict[str, Any] = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": text, "audiences": [AUDIENCE]},
        }
        try:
            status = msgspec.json.decode(await self._api.request("POST", REVIEWS, body=body, timeout=5), type=_Review).status
        except (KubeError, msgspec.DecodeError) as error:
            log.warning("a token could not be reviewed", error=error)
            raise BadRequest("the API server did not say whose token this is") from error
        if not status.authenticated or AUDIENCE not in status.audiences:
            raise BadRequest("the API server does not take the token for this audience")
        return status.user

    async def _not_revoked(self, node: str) -> None:
        try:
            found = await self._bus.last(f"KV_{REVOKED_BUCKET}", bucket_subject(REVOKED_BUCKET, token(node)))
        except BusError as error:
            raise BadRequest("whether the node is revoked is not known now") from error
        if found is not None and found.payload:  # an entry that was deleted is empty
            raise BadRequest(f"node {node} is revoked")
