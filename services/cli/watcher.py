"""`sluice watcher`: one watcher process."""

from __future__ import annotations

import os
from pathlib import Path

import click

from services.cli import options
from services.cli.errors import Stop
from services.shared.bus.address import BusAddress
from services.shared.flags import FlagError, Flags, overlaid


def _accounts(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        account, _equals, group = value.partition("=")
        namespace, _slash, name = account.partition("/")
        if not (namespace and name and group):
            raise Stop(f"--enrol {value!r} is not NAMESPACE/NAME=GROUP, for example ingress-nginx/sluice-edge=default")
        found[account] = group
    return found


def _group_flags(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value in values:
        group, _colon, setting = value.partition(":")
        if not (group and setting):
            raise Stop(f"--group-flag {value!r} is not GROUP:NAME=VALUE, for example internal:ingress-class=internal")
        found.setdefault(group, []).append(setting)
    return found


def _overlaid(flags: Flags, settings: list[str]) -> Flags:
    try:
        return overlaid(flags, settings)
    except FlagError as error:
        raise Stop(str(error).replace("--set-flag", "--group-flag")) from None


@click.command("watcher")
@click.option("--manifests", type=options.path(exists=True, file_okay=False), help="The source is this directory of manifests.")
@click.option("--kubeconfig", type=options.path(exists=True, dir_okay=False), help="The source is the API server of this kubeconfig.")
@click.option("--context", default="", help="Of the kubeconfig.  [default: its current one]")
@click.option("--in-cluster", is_flag=True, help="The source is the API server of this pod's service account.")
@click.option("--election-namespace", envvar="POD_NAMESPACE", default="default", show_default=True, help="Where the leader's Lease is.")
@click.option("--name", default="watcher", show_default=True, help="The key of its report, and its name in the Lease.")
@click.option(
    "--enrol",
    multiple=True,
    callback=_accounts,
    metavar="NAMESPACE/NAME=GROUP",
    help="Pods of this service account are edge nodes of GROUP and get credentials for NATS; repeatable.",
)
@click.option("--registrar-key", type=options.path(dir_okay=False), help="The file with the key that signs these credentials.")
@click.option(
    "--group-flag",
    "group_flags",
    multiple=True,
    callback=_group_flags,
    metavar="GROUP:NAME=VALUE",
    help="What --set-flag says otherwise for a further group of nodes: its classes, and what its Ingresses' status names; repeatable.",
)
@options.health_port
@options.seal_keys
@options.bus
@options.flags
def command(
    manifests: Path | None,
    kubeconfig: Path | None,
    context: str,
    in_cluster: bool,
    election_namespace: str,
    name: str,
    enrol: dict[str, str],
    registrar_key: Path | None,
    group_flags: dict[str, list[str]],
    health_port: int,
    seal_keys: Path,
    bus: BusAddress,
    flags: Flags,
) -> None:
    """Publish a cluster, or a directory of manifests, on the CLUSTER stream."""
    if [manifests is not None, kubeconfig is not None, in_cluster].count(True) != 1:
        raise Stop("one of --manifests DIR, --kubeconfig FILE and --in-cluster says where the objects are")
    if in_cluster and not os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise Stop("--in-cluster works in a pod only; outside use --kubeconfig")
    from services.watcher.__main__ import main
    from services.watcher.options import RegistrarOptions, WatcherOptions

    if enrol and (registrar_key is None or manifests is not None):
        raise Stop("--enrol needs --registrar-key, and a cluster that says who a pod is")
    registrar = RegistrarOptions(key=registrar_key, accounts=enrol) if enrol and registrar_key is not None else None
    main(
        WatcherOptions(
            manifests=manifests,
            kubeconfig=kubeconfig,
            context=context,
            election_namespace=election_namespace,
            name=name,
            health_port=health_port,
            registrar=registrar,
            seal_keys=seal_keys,
            bus=bus,
            flags=flags,
            groups={group: _overlaid(flags, settings) for group, settings in group_flags.items()},
        )
    )
