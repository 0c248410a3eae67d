"""Manifests to a compiled engine, without a running sluice: what `validate` and `compile` share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.cli.errors import Stop
from services.compiler.engine import Engine
from services.shared.contracts.delta import Delta
from services.shared.contracts.objects import AnyObject, Ingress, Key
from services.shared.contracts.problem import Problem
from services.shared.flags import Flags
from services.watcher.selection import Selection
from services.watcher.sources.manifests import ManifestSource


def compiled(directory: Path, flags: Flags) -> tuple[Engine, tuple[Problem, ...], list[Ingress]]:
    """(a compiled engine, what could not be read, all Ingresses of the directory in the order of their names)."""
    source = ManifestSource(directory)
    objects = source.look().objects
    engine = Engine(flags)
    for key, obj in sorted(Selection(flags).apply(objects).items()):
        engine.apply(_delta(key, obj))
    engine.compile()
    problems = tuple(p for p in source.problems if p.severity == "error")
    return engine, problems, [o for _, o in sorted(objects.items()) if isinstance(o, Ingress)]


def compiled_files(files: Sequence[Path], flags: Flags) -> tuple[Engine, tuple[Problem, ...], list[Ingress]]:
    """The same for single files and directories, taken together."""
    with tempfile.TemporaryDirectory(prefix="sluice-") as scratch:
        for number, file in enumerate(files):
            target = Path(scratch) / f"{number:04}"
            try:
                if file.is_dir():
                    shutil.copytree(file, target)
                else:
                    target.mkdir()
                    shutil.copyfile(file, target / file.name)
            except OSError as error:
                raise Stop(f"{file} cannot be read: {error.strerror or error}") from None
        return compiled(Path(scratch), flags)


def _delta(key: Key, obj: AnyObject | None) -> Delta:
    return Delta(op="upsert" if obj is not None else "delete", kind=key.kind, namespace=key.namespace, name=key.name, epoch=1, object=obj)
