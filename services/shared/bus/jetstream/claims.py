"""Telling running servers that an account has changed: what is revoked is cut off at once."""

from __future__ import annotations

from typing import Final

import msgspec
import nats.errors
from msgspec import Struct

from services.shared.bus.address import BusAddress
from services.shared.bus.jetstream.connection import Connection

SECONDS: Final = 5.0


class _Error(Struct):
    description: str = ""


class _Answer(Struct):
    error: _Error | None = None


async def push_account(address: BusAddress, account_jwt: str) -> str:
    """As the system account's user. Returns what is wrong; empty: the servers have it."""
    connection = Connection(address, name="claims", reconnected=lambda: None)
    await connection.open()
    try:
        answer = await connection.client.request("$SYS.REQ.CLAIMS.UPDATE", account_jwt.encode(), timeout=SECONDS)
        error = msgspec.json.decode(answer.data, type=_Answer).error
        return error.description if error is not None else ""
    except (nats.errors.Error, msgspec.DecodeError) as error:
        return str(error) or type(error).__name__
    finally:
        await connection.close()
