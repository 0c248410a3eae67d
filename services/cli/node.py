"""`sluice node`: shut a lost edge node out, or let one in again."""

from __future__ import annotations

import asyncio
import time

import click
import msgspec

from services.cli import options
from services.cli.errors import Stop
from services.cli.keys import InDirectory, take_new_key
from services.cli.running import ask, is_release, print_json, when
from services.cli.state import StateDirectory, Up, require_up
from services.shared.bus.jetstream.claims import push_account
from services.shared.bus.port import Bus
from services.shared.contracts.identity import Revocation
from services.shared.contracts.subjects import REVOKED_BUCKET, token
from services.shared.files import write_atomically
from services.shared.natsauth.authority import Authority, BadAuthority


@click.group("node")
def command() -> None:
    """Edge nodes' admission to the bus."""


@command.command("revoke")
@click.argument("node")
@options.state
@options.as_json
def revoke(node: str, state: StateDirectory, as_json: bool) -> None:
    """Shut NODE out: its credential counts no more, it gets no sealing key any more, and a new key seals from now on.

    What the node has it has: certificates that it served should be replaced as well. Its nginx goes on serving what it holds.

    Of an installed release: it gets neither a credential nor keys any more, and the credential it has ends within the hour.
    """
    if is_release(state):
        _revoke_in_release(state, node, as_json)
        return
    up = _knowing(state, node)
    authority = _authority(state)
    count = authority.revoke(node)
    _tell_servers(state, up, authority)
    ask(state, lambda bus, _: _revoked(bus, node))
    key = take_new_key(InDirectory(state))[-1]
    if as_json:
        print_json({"revoked": node, "credentials": count, "key": key.id.hex(), "since": key.since})
    else:
        click.echo(f"{node} is revoked: {count} credential(s) count no more; key {key.id.hex()} seals from {when(key.since)} on")


def _revoke_in_release(state: StateDirectory, node: str, as_json: bool) -> None:
    ask(state, lambda bus, _: _revoked(bus, node))
    if as_json:
        print_json({"revoked": node})
    else:
        click.echo(
            f"{node} gets no credential any more and is out within the hour; now take another sealing key into use: "
            "sluice keys rotate --namespace NAMESPACE --kubeconfig FILE"
        )


@command.command("admit")
@click.argument("node")
@options.state
@options.as_json
def admit(node: str, state: StateDirectory, as_json: bool) -> None:
    """Let NODE in again, with another credential; its applier connects at its next try."""
    if not is_release(state):
        up = _knowing(state, node)
        authority = _authority(state)
        authority.admit(node)
        write_atomically(state.credential(node), authority.node(node, up.group).encode(), mode=0o600)
    ask(state, lambda bus, _: bus.delete(REVOKED_BUCKET, token(node)))
    print_json({"admitted": node}) if as_json else click.echo(f"{node} is admitted")


def _knowing(state: StateDirectory, node: str) -> Up:
    up = require_up(state)
    names = [n.name for n in up.nodes]
    if node not in names:
        raise Stop(f"there is no node {node!r}; there are {', '.join(names)}")
    return up


def _authority(state: StateDirectory) -> Authority:
    try:
        return Authority.at(state.nats)
    except (BadAuthority, OSError) as error:
        raise Stop(str(error)) from None


def _tell_servers(state: StateDirectory, up: Up, authority: Authority) -> None:
    file = state.credential("system")
    write_atomically(file, authority.system().encode(), mode=0o600)
    try:
        problem = asyncio.run(push_account(state.bus(up.nats, "system"), authority.account_jwt))
    finally:
        file.unlink(missing_ok=True)
    if problem:
        raise Stop(f"the NATS servers did not take the revocation: {problem}")


async def _revoked(bus: Bus, node: str) -> None:
    await bus.put(REVOKED_BUCKET, token(node), msgspec.json.encode(Revocation(node=node, at=time.time())))
