"""`sluice keys`: what Secrets and rows with private keys are sealed with on the bus, and an installed release's own secrets."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import click
import msgspec
from msgspec import Struct

from services.cli import options
from services.cli.errors import Stop
from services.cli.installation import Release, Stored, complete, read, write
from services.cli.running import print_json, table, when
from services.cli.state import StateDirectory
from services.shared.files import write_atomically
from services.shared.natsauth.authority import BadAuthority
from services.shared.sealing.keyfile import FILE
from services.shared.sealing.ring import KeyRing, SealKey, decode_keys, encode_keys, rotated

T = TypeVar("T")

ROTATE_AFTER_SECONDS: Final = 5.0
SECRET_SECONDS: Final = 180.0


class ShownKey(Struct, frozen=True, kw_only=True):
    """One key, as --json prints it."""

    id: str
    since: float
    """Unix seconds from which on it seals."""
    seals: bool
    """It is the one that seals now."""


if TYPE_CHECKING:
    from services.shared.kube.client import Api


@click.group("keys")
def command() -> None:
    """Sealing keys: show which there are, and take another into use. Of an installed release: make all that it keeps secret."""


class Kept(Protocol):
    """Where sealing keys are kept."""

    spread_seconds: float
    """In which a change has certainly reached who reads them."""

    def read(self) -> tuple[SealKey, ...]: ...

    def change(self, change: Callable[[tuple[SealKey, ...]], tuple[SealKey, ...]]) -> tuple[SealKey, ...]:
        """The keys that are there then."""
        ...


class InDirectory:
    """A state directory's."""

    spread_seconds: float = ROTATE_AFTER_SECONDS

    def __init__(self, state: StateDirectory) -> None:
        self._file = state.seal / FILE

    def read(self) -> tuple[SealKey, ...]:
        try:
            return _decode(self._file.read_bytes(), str(self._file))
        except OSError as error:
            raise Stop(f"no sealing keys in {self._file.parent}: {error.strerror}; `sluice up` makes them") from None

    def change(self, change: Callable[[tuple[SealKey, ...]], tuple[SealKey, ...]]) -> tuple[SealKey, ...]:
        keys = change(self.read())
        write_atomically(self._file, encode_keys(keys), mode=0o600)
        return keys


class InSecret:
    """An installed release's."""

    spread_seconds: float = SECRET_SECONDS

    def __init__(self, release: Release, kubeconfig: Path | None) -> None:
        self._namespace, self._name = release.namespace, f"{release.prefix}-seal"
        self._kubeconfig = kubeconfig

    def read(self) -> tuple[SealKey, ...]:
        return self._decode(in_cluster(self._kubeconfig, lambda api: read(api, self._namespace, self._name)))

    def change(self, change: Callable[[tuple[SealKey, ...]], tuple[SealKey, ...]]) -> tuple[SealKey, ...]:
        async def work(api: Api) -> tuple[SealKey, ...]:
            now = await read(api, self._namespace, self._name)
            keys = change(self._decode(now))
            await write(api, self._namespace, self._name, now, {FILE: encode_keys(keys)})
            return keys

        return in_cluster(self._kubeconfig, work)

    def _decode(self, secret: Stored) -> tuple[SealKey, ...]:
        return _decode(secret.data.get(FILE, b""), f"Secret {self._namespace}/{self._name}")


def _decode(data: bytes, where: str) -> tuple[SealKey, ...]:
    try:
        return decode_keys(data)
    except (msgspec.DecodeError, ValueError) as error:
        raise Stop(f"{where} holds no sealing keys: {error}") from None


def take_new_key(kept: Kept, after: float | None = None) -> tuple[SealKey, ...]:
    """One that seals from `after` seconds on, the last of those that are there then."""
    since = time.time() + (kept.spread_seconds if after is None else after)
    return kept.change(lambda keys: rotated(keys, since))


def in_cluster(kubeconfig: Path | None, work: Callable[[Api], Awaitable[T]]) -> T:
    """Speak to the API server of a kubeconfig, or (None) of this pod. What goes wrong is one sentence."""
    from services.shared.kube.client import Api, KubeError

    async def run() -> T:
        api = await Api.connect(kubeconfig)
        try:
            return await work(api)
        finally:
            await api.close()

    try:
        return asyncio.run(run())
    except (BadAuthority, KubeError) as error:
        raise Stop(str(error)) from None


def _release(command: Callable[..., Any]) -> Callable[..., Any]:
    """The keys of which installation; the command gets it as `kept`."""

    @click.option("--namespace", default="", help="Of an installed release: its Secrets instead of a state directory.")
    @click.option("--prefix", default="sluice", show_default=True, help="What the names of the release's Secrets begin with.")
    @click.option("--kubeconfig", type=options.path(exists=True, dir_okay=False), help="Which cluster.  [default: this pod's]")
    @options.state
    @functools.wraps(command)
    def wrapped(state: StateDirectory, namespace: str, prefix: str, kubeconfig: Path | None, **rest: Any) -> Any:
        release = Release(namespace=namespace, prefix=prefix)
        return command(kept=InSecret(release, kubeconfig) if namespace else InDirectory(state), **rest)

    return wrapped


@command.command("create")
@click.option("--namespace", required=True, help="The release's.")
@click.option("--prefix", default="sluice", show_default=True, help="What the names of the Secrets begin with.")
@click.option("--kubeconfig", type=options.path(exists=True, dir_okay=False), help="Which cluster.  [default: this pod's]")
@options.as_json
def create(namespace: str, prefix: str, kubeconfig: Path | None, as_json: bool) -> None:
    """Make what an installed release keeps secret: the bus' keys, certificate and credentials, and the first sealing key.

    What is there and still right stays; so it may run again, and does at each upgrade (docs/installation.md).
    """
    written = in_cluster(kubeconfig, lambda api: complete(api, Release(namespace=namespace, prefix=prefix)))
    if as_json:
        print_json({"written": written})
    else:
        click.echo("\n".join(f"Secret {namespace}/{name} written" for name in written) or "everything is there")


@command.command("list")
@_release
@options.as_json
def show(kept: Kept, as_json: bool) -> None:
    """The keys by id; what they are is never shown."""
    ring = KeyRing(kept.read())
    keys = [ShownKey(id=k.id.hex(), since=k.since, seals=k.id.hex() == ring.current) for k in ring.keys]
    if as_json:
        print_json(keys)
    else:
        table("Sealing keys", ["id", "from", "seals"], [[k.id, when(k.since), "yes" if k.seals else ""] for k in keys])


@command.command("rotate")
@_release
@click.option(
    "--after",
    type=click.FloatRange(0, 86400),
    help="Seconds until the new key seals: everybody must have it by then.  "
    f"[default: {ROTATE_AFTER_SECONDS:g}; of an installed release {SECRET_SECONDS:g}, in which a Secret reaches pods]",
)
@options.as_json
def rotate(kept: Kept, after: float | None, as_json: bool) -> None:
    """Take a new key into use: everything on the bus is sealed anew, and each node that is not revoked gets it.

    Of the older keys the newest stays, to open what is sealed with it; the others are forgotten.
    """
    keys = take_new_key(kept, after)
    if as_json:
        print_json({"id": keys[-1].id.hex(), "since": keys[-1].since, "kept": [k.id.hex() for k in keys[:-1]]})
    else:
        click.echo(f"key {keys[-1].id.hex()} seals from {when(keys[-1].since)} on; `sluice history` shows the version that is sealed anew")
