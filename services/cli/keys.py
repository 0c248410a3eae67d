"""`sluice keys`: the keys that Secrets and rows with private keys are sealed with on the bus."""

from __future__ import annotations

import time

import click
import msgspec
from msgspec import Struct

from services.cli import options
from services.cli.errors import Stop
from services.cli.running import print_json, table, when
from services.cli.state import StateDirectory, write_atomically
from services.shared.sealing.keyfile import FILE
from services.shared.sealing.ring import KeyRing, SealKey, decode_keys, encode_keys, rotated

ROTATE_AFTER_SECONDS = 5.0


class ShownKey(Struct, frozen=True, kw_only=True):
    """One key, as --json prints it."""

    id: str
    since: float
    """Unix seconds from which on it seals."""
    seals: bool
    """It is the one that seals now."""


@click.group("keys")
def command() -> None:
    """Sealing keys: show which there are, and take another into use."""


def _read(state: StateDirectory) -> tuple[SealKey, ...]:
    try:
        return decode_keys((state.seal / FILE).read_bytes())
    except OSError as error:
        raise Stop(f"no sealing keys in {state.seal}: {error.strerror}; `sluice up` makes them") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise Stop(f"{state.seal / FILE} holds no sealing keys: {error}") from None


def take_new_key(state: StateDirectory, after: float) -> tuple[SealKey, ...]:
    """The keys that are there now, the new one last."""
    keys = rotated(_read(state), time.time() + after)
    write_atomically(state.seal / FILE, encode_keys(keys), mode=0o600)
    return keys


@command.command("list")
@options.state
@options.as_json
def show(state: StateDirectory, as_json: bool) -> None:
    """The keys by id; what they are is never shown."""
    ring = KeyRing(_read(state))
    keys = [ShownKey(id=k.id.hex(), since=k.since, seals=k.id.hex() == ring.current) for k in ring.keys]
    if as_json:
        print_json(keys)
    else:
        table("Sealing keys", ["id", "from", "seals"], [[k.id, when(k.since), "yes" if k.seals else ""] for k in keys])


@command.command("rotate")
@options.state
@click.option(
    "--after",
    default=ROTATE_AFTER_SECONDS,
    show_default=True,
    type=click.FloatRange(0, 86400),
    help="Seconds until the new key seals: everybody must have it by then.",
)
@options.as_json
def rotate(state: StateDirectory, after: float, as_json: bool) -> None:
    """Take a new key into use: everything on the bus is sealed anew, and each node that is not revoked gets it.

    Of the older keys the newest stays, to open what is sealed with it; the others are forgotten.
    """
    keys = take_new_key(state, after)
    if as_json:
        print_json({"id": keys[-1].id.hex(), "since": keys[-1].since, "kept": [k.id.hex() for k in keys[:-1]]})
    else:
        click.echo(f"key {keys[-1].id.hex()} seals from {when(keys[-1].since)} on; `sluice history` shows the version that is sealed anew")
