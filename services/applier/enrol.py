"""A node's credential for the bus: the node makes its key, a watcher signs it on seeing the pod's token (services/watcher/registrar.py).

The key never leaves the node. The credential counts for an hour and is had anew after half of it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from services.applier.options import ApplierOptions, EnrolOptions
from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream import JetStreamBus
from services.shared.bus.port import BusError
from services.shared.contracts.enrolment import Enrol, decode_enrolled
from services.shared.contracts.subjects import ASK_WATCHER_ENROL
from services.shared.files import write_atomically
from services.shared.natsauth import jwt
from services.shared.natsauth.roles import user_of_node
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

FILE: Final = "bus.creds"
LOOK_SECONDS: Final = 0.5
RETRY_SECONDS: Final = (1.0, 30.0)
"""First and longest wait after no."""
CUT_OFF_SECONDS: Final = 10.0
"""Without a connection for so long, the credential may be one that the servers do not believe: another is asked for."""
ANSWER_SECONDS: Final = 10.0


def bus_address(options: ApplierOptions) -> BusAddress:
    """How a node comes to the bus: with what it was given, or with what it is given here."""
    if options.enrol is None:
        return options.bus
    return msgspec.structs.replace(options.bus, credentials=options.directory / FILE, inbox=user_of_node(options.node))


class Enrolment:
    """Keeps the file at `bus_address(...).credentials` good."""

    def __init__(self, options: ApplierOptions, enrol: EnrolOptions) -> None:
        self._options = options
        self._enrol = enrol
        self._path: Path = options.directory / FILE
        self._refused = ""
        self._made = ""

    async def run(self, connected: Callable[[], bool]) -> None:
        """For ever. `connected`: whether the present credential is in use."""
        seen, wait = time.monotonic(), RETRY_SECONDS[0]
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if connected():
                seen = time.monotonic()
            if not self._due() and time.monotonic() - seen < CUT_OFF_SECONDS:
                continue
            if await self._ask():
                seen, wait = time.monotonic(), RETRY_SECONDS[0]
            else:
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                wait = min(wait * 2, RETRY_SECONDS[1])

    def _due(self) -> bool:
        try:
            claims = jwt.claims_of(self._path.read_text())
        except (OSError, ValueError):
            return True
        return time.time() >= (claims.iat + claims.exp) / 2

    async def _ask(self) -> bool:
        """Whether there is a new credential."""
        try:
            answer = decode_enrolled(await self._request())
        except (OSError, BusError, TimeoutError, msgspec.DecodeError, RecursionError) as error:
            self._say(f"no answer: {str(error) or type(error).__name__}")
            return False
        if answer.refused or not answer.jwt:
            self._say(answer.refused or "an empty answer")
            return False
        self._write(answer.jwt)
        self._refused = ""
        log.info("the node has a credential for the bus", node=self._options.node)
        return True

    async def _request(self) -> bytes:
        token = self._enrol.token.read_text().strip()
        question = Enrol(node=self._options.node, group=self._options.group, public=jwt.public_of(self._seed()), token=token)
        async with asyncio.timeout(ANSWER_SECONDS), JetStreamBus(self._options.bus, name=f"enrol-{self._options.node}") as bus:
            return await bus.request(ASK_WATCHER_ENROL, msgspec.json.encode(question), timeout=ANSWER_SECONDS / 2)

    def _say(self, words: str) -> None:
        """Once: it is asked again and again."""
        if words != self._refused:
            self._refused = words
            log.error("the node gets no credential for the bus; trying again", reason=words)

    def _seed(self) -> str:
        """The node's key: in memory until the first credential is there, then beside it in its file."""
        if not self._made:
            self._made = self._read_seed() or jwt.new_seed(jwt.USER)
        return self._made

    def _read_seed(self) -> str:
        try:
            return jwt.seed_of(self._path.read_text())
        except (OSError, ValueError):
            return ""

    def _write(self, token: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, jwt.credentials(token, self._seed()).encode(), mode=0o600)
