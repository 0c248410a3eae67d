"""Who a credentials file speaks for."""

from __future__ import annotations

import base64
import re
from typing import Final

import msgspec
from msgspec import Struct

from services.shared.bus.address import BusAddress

_JWT: Final = re.compile(r"-----BEGIN NATS USER JWT-----\s*([\w.-]+)\s*-+END NATS USER JWT-+", re.ASCII)


class _Claims(Struct):
    name: str = ""


def user_name(text: str) -> str:
    """The name in the user JWT of a credentials file. Raises ValueError."""
    found = _JWT.search(text)
    parts = found[1].split(".") if found else []
    if len(parts) != 3:
        raise ValueError("no NATS user JWT in the credentials file")
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(parts[1] + "=="), type=_Claims).name
    except (ValueError, msgspec.DecodeError) as error:
        raise ValueError(f"the NATS user JWT cannot be read: {error}") from error


def inbox_of(address: BusAddress) -> str:
    """The prefix of the inboxes that this user may have."""
    name = address.inbox
    if not name and address.credentials is not None:
        name = user_name(address.credentials.read_text())
    return f"_INBOX_{name}" if name else "_INBOX"
