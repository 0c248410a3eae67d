"""One connection to NATS that never gives up, and what its exceptions mean."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar

import nats.errors
import nats.js.errors
from nats.aio.client import Client, Srv
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from services.shared.bus.address import BusAddress
from services.shared.bus.port import BusUnavailable, Conflict, NoAnswer, TooLarge
from services.shared.natsauth.jwt import claims_of
from services.shared.telemetry.logs import get_logger

log = get_logger(__name__)

logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.msg)
"""Each TLS connection that a server closes makes asyncio complain of the library's stream protocol, on stderr; it means nothing."""

ACK_SECONDS: Final = 5.0
CONNECT_SECONDS: Final = 5.0
"""For one attempt. The library never comes back from a certificate that it could not verify."""
PING_SECONDS: Final = 3
"""A server that hangs is noticed by its second missing answer, after 3 to 6 s: no sooner than the others elect another leader."""
RECONNECT_SECONDS: Final = (0.5, 2.0, 6.0)
"""The longest wait before an attempt: at first, after each server has failed once, and from then on."""
PIPELINE: Final = 512
"""Unacknowledged publishes of `publish_many` at a time."""
WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
"""The second from several servers, while another message for the subject is on its way."""

T = TypeVar("T")

_ENDED: Final = (nats.errors.Error, OSError, TimeoutError, AssertionError)
"""What closing a client may raise; AssertionError where it was never asked to connect."""

_KEPT_HEADERS: Final = ("traceparent", "tracestate", "KV-Operation")


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Foreign exceptions become the port's."""
    try:
        yield
    except nats.errors.MaxPayloadError as error:
        raise TooLarge(str(error)) from error
    except nats.errors.NoRespondersError as error:
        raise NoAnswer("nobody serves this subject") from error
    except nats.js.errors.APIError as error:
        if error.err_code in WRONG_LAST_SEQUENCE:
            raise Conflict(error.description or "wrong last sequence") from error
        raise BusUnavailable(f"JetStream: {error.description or error}") from error
    except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError) as error:
        raise BusUnavailable(f"NATS: {type(error).__name__} {error}".strip()) from error


def kept(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The headers that mean something to the port's users, and the bucket operation."""
    return {k: headers[k] for k in _KEPT_HEADERS if k in headers} if headers else {}


class _Client(Client):
    """The library's, but for a server that hangs: TLS would wait half a minute for its farewell before any other server is tried."""

    async def _attempt_reconnect(self) -> None:
        _abort(self)
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Srv) -> None:
        _abort(self)  # what the last attempt has opened, if it failed: nobody else closes it
        await super()._connect_to_server(s)


def _abort(client: Client) -> None:
    """End its TCP connection now, and send nothing any more."""
    writer: Any = getattr(client._transport, "_bare_io_writer", None)  # below TLS: Python's TLS transport, closed twice, fails to abort
    if writer is not None:
        writer.transport.abort()


class Connection:
    """`client` and `js` are the library's, and others after the server has refused the credentials: that ends a client for good.

    `reconnected` is called after each loss; `reopened` when `client` is another one, on which nothing is subscribed yet.
    """

    def __init__(
        self, address: BusAddress, *, name: str, reconnected: Callable[[], None], reopened: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._address = address
        self._name = name
        self._reconnected = reconnected
        self._reopened = reopened
        self._reopening: asyncio.Task[None] | None = None
        self._closing = False
        self._refused = ""
        self._opened = False
        """Whether there was a connection once."""
        self._lost = asyncio.Event()
        """Set at the next loss, and replaced then."""
        self.client: Client = _Client()
        self.js: JetStreamContext = self.client.jetstream()

    async def open(self) -> None:
        """Try until there is a connection. Until then `client` is the one before: calls on it say that it is closed."""
        delay = 0.05
        while True:
            client = _Client()
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._connect(client)
                break
            except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
                self._note_refusal(error)
                await discard(client)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(delay * 2, 1.0)
            except BaseException:  # nobody waits for it any more
                _abort(client)
                raise
        self._refused, self._opened = "", True
        self.client = client
        self.js = client.jetstream(timeout=ACK_SECONDS, publish_async_max_pending=4 * PIPELINE)

    async def _connect(self, client: Client) -> None:
        address = self._address
        servers = address.url.split(",")
        options: dict[str, Any] = {}
        if address.credentials is not None:
            options["user_credentials"] = str(address.credentials)
        if any(s.startswith("tls://") for s in servers):
            options["tls"] = ssl.create_default_context(cafile=str(address.ca) if address.ca else None)
        await client.connect(
            servers,
            name=self._name,
            inbox_prefix=_inbox_of(address),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0,  # the jitter is below
            reconnect_to_server_handler=_jittered,
            ping_interval=PING_SECONDS,
            max_outstanding_pings=1,
            error_cb=functools.partial(self._on_error, client),
            reconnected_cb=self._on_reconnected,
            disconnected_cb=self._on_disconnected,
            closed_cb=functools.partial(self._on_closed, client),
            pending_size=64 * 1024 * 1024,
            allow_reconnect=True,
            **options,
        )

    def _note_refusal(self, error: Exception) -> None:
        """Say once why there is no connection; louder what an operator must mend: credentials and certificates do not mend themselves."""
        words = str(error) or type(error).__name__
        mendable = isinstance(error, ssl.SSLError | ValueError | FileNotFoundError) or "uthoriz" in words
        if words == self._refused:
            return
        self._refused, address = words, self._address
        if mendable:
            log.error("nats refuses this connection; trying again", error=words, credentials=address.credentials, ca=address.ca)
        else:
            log.warning("no connection to nats yet; trying again", error=words, url=address.url)

    async def subscribe(self, subject: str, take: Callable[[Msg], Awaitable[None]], *, queue: str = "") -> Subscription:
        """Returns once the server knows of it."""
        client = self.client
        subscription = await client.subscribe(subject, queue=queue, cb=take)
        # Twice: the library writes a PING ahead of commands that are still pending, and the first answer proves nothing.
        await client.flush()
        await client.flush()
        return subscription

    async def unless_lost(self, answer: Awaitable[T]) -> T:
        """The answer. Raises BusUnavailable at once when the connection is lost meanwhile: what the server then says never arrives."""
        waiting: asyncio.Future[Any] = asyncio.ensure_future(answer)
        lost: asyncio.Future[Any] = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait([waiting, lost], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise BusUnavailable("the connection to NATS was lost before the answer came")
            result: T = waiting.result()
            return result
        finally:
            lost.cancel()
            waiting.cancel()
            await asyncio.gather(waiting, lost, return_exceptions=True)

    async def close(self) -> None:
        self._closing = True
        if self._reopening is not None:
            self._reopening.cancel()
        await discard(self.client)

    async def _on_error(self, client: Client, error: Exception) -> None:
        words = str(error)
        log.debug("nats error", error=error)
        if isinstance(error, ssl.SSLCertVerificationError):
            self._note_refusal(error)
            await self._on_closed(client)  # it will not try again by itself
        if "ermissions violation" in words or "control line" in words:
            log.error("nats refuses what this credential tried", error=error)

    async def _on_disconnected(self) -> None:
        self._lost.set()
        self._lost = asyncio.Event()
        if not self._closing and self._opened:
            log.warning("disconnected from nats")

    async def _on_closed(self, client: Client) -> None:
        """The library gave up: credentials or a certificate were refused. They may be others by now, or be believed again."""
        if client is self.client and not self._closing and (self._reopening is None or self._reopening.done()):
            self._reopening = asyncio.create_task(self._reopen())

    async def _reopen(self) -> None:
        log.error("nats has ended this connection; the credentials are read again", server=self._address.url)
        old = self.client
        await self.open()
        await discard(old)
        log.info("connected to nats again")
        if self._reopened is not None:
            await self._reopened()
        self._reconnected()

    async def _on_reconnected(self) -> None:
        log.info("reconnected to nats")
        self._reconnected()


async def discard(client: Client) -> None:
    """A client that failed is of no use again, and may hold a socket. What it was to send is sent, if that can be done at once."""
    with contextlib.suppress(*_ENDED):
        async with asyncio.timeout(CONNECT_SECONDS):
            await client.close()
    _abort(client)


def _inbox_of(address: BusAddress) -> str:
    """The prefix of the inboxes that this user may have."""
    name = address.inbox
    if not name and address.credentials is not None:
        name = claims_of(address.credentials.read_text()).name
    return f"_INBOX_{name}" if name else "_INBOX"


def _jittered(servers: list[Any], info: Any) -> tuple[Any, float]:
    """Which server to try next, and how long to wait before: spread, so that a thousand clients do not arrive at once.

    One that has failed since it was connected last comes after those that have not.
    """
    fewest = min(server.reconnects for server in servers)
    longest = RECONNECT_SECONDS[min(fewest, len(RECONNECT_SECONDS) - 1)]
    server = random.choice([s for s in servers if s.reconnects == fewest])  # noqa: S311 - jitter
    return server, random.uniform(0.05, longest)  # noqa: S311 - jitter
