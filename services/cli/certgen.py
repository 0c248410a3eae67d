"""`sluice certgen`: what kube-webhook-certgen does, under its flags."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from services.cli import options
from services.cli.errors import FAILED, Stop

if TYPE_CHECKING:
    from services.shared.kube.client import Api


Command = TypeVar("Command", bound=Callable[..., None])

LEVELS: Final = {
    "panic": "CRITICAL",
    "fatal": "CRITICAL",
    "error": "ERROR",
    "warn": "WARNING",
    "warning": "WARNING",
    "info": "INFO",
    "debug": "DEBUG",
    "trace": "DEBUG",
}
"""The original's names -> ours."""
_LEVEL: Final = f"{__name__}.level"


class AsTheOriginal(click.Group):
    """Every error is exit status 1: a wrong command line, too."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        with _failing():
            return super().make_context(*args, **more)

    def invoke(self, ctx: click.Context) -> Any:
        with _failing():
            return super().invoke(ctx)


@contextlib.contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        error.exit_code = FAILED  # type: ignore[misc]  # where click looks for it, whoever's it is
        raise


def _level(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta[_LEVEL] = LEVELS[value]


def _everywhere(command: Command) -> Command:
    """Flags that the original takes before and after the sub-command."""
    for option in (
        click.option(
            "--log-format",
            type=click.Choice(["json", "text"]),
            expose_value=False,
            help="Taken, without effect: the log is text on stderr.",
        ),
        click.option(
            "--log-level",
            type=click.Choice(list(LEVELS), case_sensitive=False),
            callback=_level,
            expose_value=False,
            help="[default: what SLUICE_LOG says, info]",
        ),
        click.option("--kubeconfig", type=options.path(exists=True, dir_okay=False), help="Which cluster.  [default: this pod's]"),
    ):
        command = option(command)
    return command


def _secret(command: Command) -> Command:
    for option in (
        click.option("--ca-name", default="ca", show_default=True, help="The Secret's key for the CA's certificate."),
        click.option("--secret-name", required=True),
        click.option("--namespace", required=True),
    ):
        command = option(command)
    return command


def _boolean(name: str) -> Callable[[Command], Command]:
    """As Go's flags: alone it means true."""
    return click.option(name, default="true", show_default=True, is_flag=False, flag_value="true", type=bool)


@click.group("certgen", cls=AsTheOriginal)
@_everywhere
@click.pass_context
def command(context: click.Context, kubeconfig: Path | None) -> None:
    """Make the admission webhook's certificate in the cluster, and have the API server trust it. Takes kube-webhook-certgen's flags."""
    context.obj = kubeconfig


def _run(kubeconfig: Path | None, work: Callable[[Api], Awaitable[object]]) -> None:
    from services.shared.kube.client import Api, KubeError
    from services.shared.telemetry import logs
    from services.webhook.certgen import CertgenError

    async def run() -> None:
        api = await Api.connect(kubeconfig)
        try:
            await work(api)
        finally:
            await api.close()

    logs.configure("certgen", click.get_current_context().meta.get(_LEVEL, ""))
    try:
        asyncio.run(run())
    except (CertgenError, KubeError) as error:
        raise Stop(str(error)) from None


@command.command("version")
@_everywhere
@click.pass_obj
def version(_: Path | None, kubeconfig: Path | None) -> None:
    """Of Sluice and of Python, a line each."""
    import importlib.metadata
    import platform

    click.echo(f"sluice {importlib.metadata.version('sluice-ingress')}\nPython {platform.python_version()}")


@command.command("create")
@_everywhere
@_secret
@click.option("--host", required=True, help="DNS names and addresses of the webhook, separated by commas.")
@click.option("--cert-name", default="cert", show_default=True, help="The Secret's key for the certificate.")
@click.option("--key-name", default="key", show_default=True, help="The Secret's key for the private key.")
@click.pass_obj
def create(
    outer: Path | None, kubeconfig: Path | None, namespace: str, secret_name: str, ca_name: str, host: str, cert_name: str, key_name: str
) -> None:
    """Make the Secret, unless it is there already."""
    from services.webhook import certgen

    place = certgen.Place(namespace=namespace, secret=secret_name, ca_key=ca_name, certificate_key=cert_name, private_key=key_name)
    _run(kubeconfig or outer, lambda api: certgen.create(api, place, host.split(",")))


@command.command("patch")
@_everywhere
@_secret
@click.option("--webhook-name", default="", help="Of the webhook configurations.")
@click.option("--apiservice-name", default="", help="Of an APIService.")
@_boolean("--patch-validating")
@_boolean("--patch-mutating")
@click.option("--patch-failure-policy", default="", help="Ignore or Fail.  [default: left as it is]")
@click.pass_obj
def patch(
    outer: Path | None,
    kubeconfig: Path | None,
    namespace: str,
    secret_name: str,
    ca_name: str,
    webhook_name: str,
    apiservice_name: str,
    patch_validating: bool,
    patch_mutating: bool,
    patch_failure_policy: str,
) -> None:
    """Put the Secret's CA into webhook configurations."""
    from services.webhook import certgen

    place = certgen.Place(namespace=namespace, secret=secret_name, ca_key=ca_name)
    wanted = certgen.Patch(
        webhook=webhook_name,
        api_service=apiservice_name,
        validating=patch_validating,
        mutating=patch_mutating,
        failure_policy=patch_failure_policy,
    )
    _run(kubeconfig or outer, lambda api: certgen.patch(api, place, wanted))
