"""Options of `sluice up` in; which processes run with which arguments, and which ports they need, out. Starts nothing."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from services.cli.state import StateDirectory, Up, UpNode, UpWebhook
from services.cli.supervisor.child import Spec
from services.cli.supervisor.ports import Wanted
from services.shared.flags import Flags, format_flags
from services.shared.telemetry.lifecycle import BEAT_VARIABLE

GROUP: Final = "default"
WEBHOOK_PATH: Final = "/networking/v1/ingresses"


class UpOptions(Struct, frozen=True, kw_only=True):
    """What `sluice up` was told."""

    state: StateDirectory
    manifests: Path | None
    """None: the source is `kubeconfig`'s cluster."""
    kubeconfig: Path | None = None
    context: str = ""
    nodes: int = 2
    http_port: int = 8080
    https_port: int = 8443
    healthz_port: int = 10254
    webhook_port: int = 9443
    flags: Flags = Flags()
    demo: bool = False


def node_names(options: UpOptions) -> list[str]:
    return [f"node-{i}" for i in range(options.nodes)]


def wanted_ports(options: UpOptions) -> list[Wanted]:
    """All fixed ports, in the order in which they are named to the operator."""
    out = []
    for i, name in enumerate(node_names(options)):
        out.append(Wanted(port=options.http_port + i, use=f"http of {name}", option="--http-port"))
        out.append(Wanted(port=options.https_port + i, use=f"https of {name}", option="--https-port"))
        out.append(Wanted(port=options.healthz_port + i, use=f"health of {name}", option="--healthz-port"))
    out.append(Wanted(port=options.webhook_port, use="webhook", option="--webhook-port"))
    if options.demo:
        from services.cli.demo.backends import PORTS

        out += [
            Wanted(port=port, use=f"demo backend {name}", option="no option: the demo's ports are fixed") for name, port in PORTS.items()
        ]
    return out


def up_file(options: UpOptions, *, ready: bool, nats_url: str, pid: int) -> Up:
    nodes = tuple(
        UpNode(
            name=name,
            http=f"http://127.0.0.1:{options.http_port + i}",
            https=f"https://127.0.0.1:{options.https_port + i}",
            health=f"http://127.0.0.1:{options.healthz_port + i}",
        )
        for i, name in enumerate(node_names(options))
    )
    webhook = UpWebhook(url=f"https://127.0.0.1:{options.webhook_port}{WEBHOOK_PATH}", ca=str(options.state.webhook / "ca.crt"))
    return Up(ready=ready, nodes=nodes, webhook=webhook, nats=nats_url, pid=pid, group=GROUP, manifests=str(options.manifests or ""))


def _source(options: UpOptions) -> list[str]:
    if options.kubeconfig is None:
        return ["--manifests", str(options.manifests)]
    context = ["--context", options.context] if options.context else []
    return ["--kubeconfig", str(options.kubeconfig), *context, "--name", f"watcher-{socket.gethostname()}"]


def specs(options: UpOptions, nats_binary: str, nats_url: str, nats_health: str) -> list[Spec]:
    """In the order of starting; they wait for each other by themselves."""
    state = options.state

    def service(name: str, *arguments: str, node: str = "", flags: Flags = options.flags) -> Spec:
        settings = [part for setting in format_flags(flags) for part in ("--set-flag", setting)]
        return Spec(
            name=node or name,
            argv=(sys.executable, "-m", "services.cli", name, *arguments, *settings),
            log=state.logs / f"{node or name}.log",
            environment={
                "SLUICE_NATS_URL": nats_url,
                "SLUICE_NATS_CREDS": str(state.credential(node or name)),
                "SLUICE_NATS_CA": str(state.nats / "ca.crt"),
                BEAT_VARIABLE: str(state.beat(node or name)),
            },
            beat=state.beat(node or name),
            death_signal=signal.SIGKILL if name == "applier" else signal.SIGTERM,
        )

    configured = str(state.nats / "nats.conf")
    nats = Spec(name="nats", argv=(nats_binary, "-c", configured), log=state.logs / "nats.log", health=nats_health)
    appliers = [
        service(
            "applier",
            *("--node", name, "--group", GROUP, "--directory", str(state.node(name))),
            *("--http-port", str(options.http_port + i), "--https-port", str(options.https_port + i)),
            *("--health-port", str(options.healthz_port + i), "--stream-port-offset", str(i)),
            node=name,
        )
        for i, name in enumerate(node_names(options))
    ]
    demo = Spec(name="demo", argv=(sys.executable, "-m", "services.cli.demo"), log=state.logs / "demo.log")
    return [
        nats,
        *appliers,
        service(
            "compiler",
            *("--group", GROUP, "--seal-keys", str(state.seal), "--crash-notes", str(state.crash_notes)),
            *(["--no-any-address"] if options.manifests is None else []),
            *("--nodes-here", str(options.nodes)),
            flags=replace(options.flags, http_port=options.http_port, https_port=options.https_port, healthz_port=options.healthz_port),
        ),
        service("watcher", *_source(options), "--seal-keys", str(state.seal)),
        service(
            "webhook",
            *("--certificate", str(state.webhook / "tls.crt"), "--key", str(state.webhook / "tls.key")),
            *("--port", str(options.webhook_port)),
        ),
        *([demo] if options.demo else []),
    ]
