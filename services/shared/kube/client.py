"""One API server, spoken to in bytes: credentials, TLS and connections are the client library's, the JSON is the caller's.

The library's models are not used: decoding 10,000 Ingresses through them takes many times what msgspec takes (tests/bench).
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config
from msgspec import Struct

REQUEST_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 5.0
MAX_LINE_BYTES: Final = 16 << 20
"""Of one watch event. The largest legal object is 1.5 MB; managed fields and JSON escapes make it longer."""
CONNECTIONS: Final = 64
LONGEST_RETRY_AFTER: Final = 120.0
"""Seconds. What a server asks for beyond this is not waited for."""
KEEPALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds, seconds, times: a watch whose other end is gone without a word is noticed within 30 s, not when its time is over."""
JSON: Final = "application/json"
METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class KubeError(Exception):
    """The base of what a request raises."""


class Unreachable(KubeError):
    """No answer: not connected, cut off, or too late."""


class BadCredentials(KubeError):
    """The kubeconfig or the service account cannot be used. The message says why."""


class ApiError(KubeError):
    """The API server's own error."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        """Machine-readable: `NotFound`, `Conflict`, `AlreadyExists`, `Expired` ..."""
        self.message = message
        self.retry_after = retry_after
        """Seconds; 0: it did not say."""


class _Status(Struct, rename="camel"):
    message: str = ""
    reason: str = ""


class Api:
    """See the module. Close it."""

    def __init__(self, configuration: Configuration) -> None:
        configuration.connection_pool_maxsize = CONNECTIONS
        self._configuration: Any = configuration  # the library's own annotations are partial
        self._client: Any = ApiClient(configuration)

    @classmethod
    async def connect(cls, kubeconfig: Path | None = None, context: str = "") -> Api:
        """With a kubeconfig, or (None) as the pod's service account. Nothing is sent yet. Raises BadCredentials."""
        configuration: Any = Configuration()
        try:
            if kubeconfig is None:
                load_incluster_config(configuration)
            else:
                await load_kube_config(str(kubeconfig), context=context or None, client_configuration=configuration, persist_config=False)
            return cls(configuration)
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            raise BadCredentials(f"{kubeconfig or 'the service account of this pod'} cannot be used: {error}") from error

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._configuration.host)

    async def close(self) -> None:
        await self._client.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_SECONDS,
        metadata_only: bool = False,
    ) -> bytes:
        """The answer's body. `body`: anything JSON, for a merge patch with `content_type="application/merge-patch+json"`.

        `metadata_only`: of a list, the objects' metadata.

        Raises ApiError and Unreachable.
        """
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS)
        try:
            answer = await self._send(method, path, query, body, content_type, limits, accept=METADATA if metadata_only else JSON)
            data = bytes(await answer.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{method} {path}: {_words(error)}") from error
        if not 200 <= answer.status < 300:
            raise _error(answer, data)
        return data

    async def lines(
        self, path: str, *, query: Mapping[str, str], silence: float, begun: Callable[[], None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The lines of a watch as they come, until the server ends it. `silence`: seconds without a byte after which it counts as dead.

        `begun` is called when the server has accepted it, which may be long before the first line.

        Raises ApiError and Unreachable. Close the iterator.
        """
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence)
        try:
            answer = await self._send("GET", path, query, None, "application/json", limits)
            with contextlib.closing(answer):
                if answer.status != 200:
                    raise _error(answer, bytes(await answer.read()))
                _keep_alive(answer)
                if begun is not None:
                    begun()
                # Not `readline`: it refuses lines longer than its buffer.
                rest = bytearray()
                async for chunk in answer.content.iter_any():
                    start, end = 0, chunk.find(b"\n")
                    while end >= 0:
                        yield bytes(rest + chunk[start:end])
                        rest.clear()
                        start, end = end + 1, chunk.find(b"\n", end + 1)
                    rest += chunk[start:]
                    if len(rest) > MAX_LINE_BYTES:
                        raise Unreachable(f"watch of {path}: an event of more than {MAX_LINE_BYTES >> 20} MiB")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"watch of {path}: {_words(error)}") from error

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: object,
        content_type: str,
        limits: aiohttp.ClientTimeout,
        *,
        accept: str = JSON,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "sluice"}
        # Asked for each request: a service account's token is replaced about once an hour.
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token
        url = f"{self.server}{path}{f'?{urlencode(query)}' if query else ''}"
        answer = await self._client.rest_client.request(method, url, headers=headers, body=body, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        return response


def _error(answer: aiohttp.ClientResponse, data: bytes) -> ApiError:
    try:
        status = msgspec.json.decode(data, type=_Status)
    except msgspec.DecodeError:
        status = _Status(message=data[:200].decode(errors="replace"))
    try:
        retry_after = float(answer.headers.get("Retry-After", "0"))
    except ValueError:
        retry_after = 0.0
    retry_after = min(max(retry_after, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(retry_after) else 0.0
    return ApiError(answer.status, status.reason or str(answer.reason), status.message, retry_after)


def _keep_alive(answer: aiohttp.ClientResponse) -> None:
    connection = answer.connection.transport if answer.connection is not None else None
    raw: socket.socket | None = connection.get_extra_info("socket") if connection is not None else None
    if raw is None:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
