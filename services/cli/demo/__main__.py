"""The demo's backends as one process."""

from __future__ import annotations

from services.cli.demo.backends import serve
from services.shared.telemetry import lifecycle

if __name__ == "__main__":
    lifecycle.run("demo", serve)
