"""When a compiler takes its world for complete."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import msgspec

from services.compiler.service import Compiler, CompilerOptions
from services.compiler.world import World
from services.shared.bus.port import Bus, Message
from services.shared.contracts.delta import Delta, SyncMark, encode_delta
from services.shared.contracts.objects import KINDS
from services.shared.contracts.subjects import SYNC_SUBJECT, cluster_subject
from tests.support.compiling import CLASS, upsert
from tests.support.objects import ingress
from tests.support.sealing import key_directory


def _message(delta: Delta, sequence: int) -> Message:
    return Message(subject=cluster_subject(delta.kind, delta.namespace, delta.name), payload=encode_delta(delta), sequence=sequence)


def _mark(deltas: list[Delta], sequence: int) -> Message:
    world = World()
    for delta in deltas:
        world.apply(delta)
    mark = SyncMark(epoch=1, kinds={kind: world.state(kind) for kind in KINDS})
    return Message(subject=SYNC_SUBJECT, payload=msgspec.json.encode(mark), sequence=sequence)


def test_a_mark_that_comes_while_a_batch_is_applied_counts_for_the_next(tmp_path: Path) -> None:
    compiler = Compiler(cast(Bus, None), CompilerOptions(seal_keys=key_directory(tmp_path)))
    engine = compiler._state.engine
    deltas = [upsert(CLASS), upsert(ingress("web", {"one.example.com": {"/": "web"}}))]

    compiler._take(_message(deltas[0], 1))
    engine.apply(compiler._inbox.pop().delta)
    compiler._take(_message(deltas[1], 2))
    compiler._take(_mark(deltas, 3))
    assert not compiler._in_sync(engine)

    engine.apply(compiler._inbox.pop().delta)
    assert compiler._in_sync(engine)
