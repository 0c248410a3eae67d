"""Each case: manifests in, IR, policies, rows and verdicts out, kept as files. `make golden` rewrites them; then read the diff.

Every golden configuration also passes `nginx -t` and the applier's gate.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.applier.gate import check_bundle
from services.applier.nodeconf import NodeSettings, prepare_node, write_generation
from services.cli.compile import _ir, _tables
from services.cli.offline import compiled
from services.compiler.engine import Engine
from services.shared.contracts.objects import Ingress, Key
from services.shared.flags import Flags, parse_flags
from tests.support.nats import free_port

CASES = Path(__file__).with_name("cases")
EXAMPLES = Path(__file__).parents[2] / "examples"
ALL = [*sorted(p.name for p in CASES.iterdir()), "examples"]


def _results(engine: Engine) -> dict[str, str]:
    keys = sorted(Key("Ingress", i.metadata.namespace, i.metadata.name) for i in engine.world.all(Ingress))
    named = (engine.flags.tcp_services_configmap, engine.flags.udp_services_configmap)
    keys += [Key("ConfigMap", *reference.split("/")) for reference in named if reference]
    verdicts = {str(k): v for k in keys if (v := engine.verdict(k)) is not None}
    policies = "\n".join(f"# {p.scope} {p.hash}\n{p.text}" for p in engine.bundle.policies)
    return {"ir.json": _json(_ir(engine)), "rows.json": _json(_tables(engine)), "verdicts.json": _json(verdicts), "policies.conf": policies}


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode() + "\n"


@pytest.mark.nginx
@pytest.mark.parametrize("case", ALL)
def test_golden(case: str, tmp_path: Path) -> None:
    directory = EXAMPLES if case == "examples" else CASES / case
    expected = CASES.parent / "expected" / case
    flags = directory / "flags.txt"
    engine, _, _ = compiled(directory, parse_flags(flags.read_text().split()) if flags.exists() else Flags())
    found = _results(engine)
    if os.environ.get("SLUICE_REWRITE_GOLDEN"):
        expected.mkdir(parents=True, exist_ok=True)
        for name, text in found.items():
            (expected / name).write_text(text)
    for name, text in found.items():
        assert text == (expected / name).read_text(), f"{case}/{name}: make golden, then read the diff"

    assert check_bundle(engine.bundle) == []
    settings = NodeSettings(directory=tmp_path, http_port=free_port(), https_port=free_port(), address="127.0.0.1")
    prepare_node(settings)
    write_generation(tmp_path / "versions" / "1", settings, engine.bundle, generation=1, version="1.1")
    command = ["/usr/sbin/nginx", "-t", "-q", "-p", str(tmp_path), "-c", str(tmp_path / "versions" / "1" / "nginx.conf")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stderr == ""
