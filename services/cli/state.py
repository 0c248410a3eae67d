"""The state directory of one `sluice up`: what is where, and `up.json`, by which every other command finds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from services.cli.errors import Stop
from services.shared.bus.address import BusAddress
from services.shared.files import write_atomically

SYSTEM_STATE: Final = Path("/var/lib/sluice")


class UpNode(Struct, frozen=True, kw_only=True):
    """One edge node. `http`, `https`, `health` are base URLs on the loopback address: `http://127.0.0.1:8080`."""

    name: str
    http: str
    https: str
    health: str


class UpWebhook(Struct, frozen=True, kw_only=True):
    url: str
    """`https://127.0.0.1:9443/networking/v1/ingresses`."""
    ca: str
    """Path of the CA certificate, PEM."""


class Up(Struct, frozen=True, kw_only=True):
    """`DIR/up.json`. A stable interface: fields are added, never renamed."""

    ready: bool
    """Every node serves everything that the source held at the start."""
    nodes: tuple[UpNode, ...] = ()
    webhook: UpWebhook | None = None
    nats: str = ""
    pid: int = 0
    """Of the supervisor."""
    group: str = "default"
    """The group of nodes that versions are for."""
    manifests: str = ""


class StateDirectory:
    """Paths below the state directory. Relative input is made absolute: children run elsewhere."""

    def __init__(self, root: Path, *, named: bool = True) -> None:
        """`named`: somebody said which; else it is the default one."""
        self.named = named
        self.root = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow a link that may point elsewhere later

    @property
    def up_file(self) -> Path:
        return self.root / "up.json"

    @property
    def lock_file(self) -> Path:
        return self.root / "up.lock"

    @property
    def children_file(self) -> Path:
        """Which processes run, for the next `up` after a kill -9 of this one."""
        return self.root / "children.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def nats(self) -> Path:
        return self.root / "nats"

    @property
    def credentials(self) -> Path:
        return self.nats / "creds"

    def credential(self, who: str) -> Path:
        """The NATS credentials file of a node, or of `watcher`, `compiler`, `webhook`, `command`."""
        return self.credentials / f"{who}.creds"

    def bus(self, url: str, who: str) -> BusAddress:
        """How to come to the embedded server as somebody."""
        return BusAddress(url=url, credentials=self.credential(who), ca=self.nats / "ca.crt")

    @property
    def seal(self) -> Path:
        """The sealing keys; only the watcher and the compiler read them."""
        return self.root / "seal"

    @property
    def crash_notes(self) -> Path:
        """What the compiler had in hand when it died."""
        return self.root / "crashes"

    @property
    def webhook(self) -> Path:
        return self.root / "webhook"

    @property
    def demo(self) -> Path:
        return self.root / "demo"

    @property
    def beats(self) -> Path:
        return self.root / "beats"

    def beat(self, name: str) -> Path:
        """What a supervised process touches while it is well."""
        return self.beats / name

    def node(self, name: str) -> Path:
        return self.root / "nodes" / name

    def read_up(self) -> Up | None:
        """None: no `up` has been here, or its file cannot be read."""
        try:
            return msgspec.json.decode(self.up_file.read_bytes(), type=Up)
        except (OSError, msgspec.DecodeError):
            return None

    def write_up(self, up: Up) -> None:
        """Atomically."""
        write_atomically(self.up_file, msgspec.json.format(msgspec.json.encode(up), indent=2) + b"\n")


def default_state() -> Path:
    """`/var/lib/sluice` for root, else `$XDG_STATE_HOME/sluice`."""
    if os.geteuid() == 0:
        return SYSTEM_STATE
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "sluice"


def require_up(state: StateDirectory) -> Up:
    """The running `sluice up` of this directory."""
    up = state.read_up()
    if up is None or not up.nats:
        raise Stop(f"no running sluice found in {state.root}; start one with `sluice up`, or name its directory with --state")
    return up
