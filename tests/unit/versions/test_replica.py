"""A follower moves only by a delta that fits what it holds and whose digest comes out; otherwise nothing changes."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from msgspec.structs import replace

from services.shared.contracts.version import Manifest, TableDigest, VersionId, version_digest
from services.shared.versions.read import as_delta, difference, digest_of
from services.shared.versions.replica import Move, Replica
from services.shared.versions.write import SHARD_BYTES, shard_count
from tests.support.sealing import ring

BEFORE = {"a": b"1", "b": b"2"}
AFTER = {"a": b"9", "c": b"3"}


def _version(number: int, rows: dict[str, bytes], parent: str = "", base: dict[str, bytes] | None = None) -> Manifest:
    tables = digest_of(rows)
    return Manifest(
        group="g",
        epoch=1,
        number=number,
        digest=version_digest("p", tables.hex),
        policy_digest="p",
        tables_digest=tables.hex,
        rows=tables.rows,
        row_bytes=tables.row_bytes,
        parent=parent,
        delta=as_delta(*difference(base, rows), ring()) if base is not None else None,
    )


FIRST = _version(1, BEFORE)
SECOND = _version(2, AFTER, FIRST.digest, BEFORE)


def _holding() -> Replica:
    return Replica(ring(), FIRST.id, FIRST.digest, dict(BEFORE))


def test_a_delta_that_fits_moves_and_says_what_changed() -> None:
    replica = _holding()
    move = replica.inline(SECOND)

    assert move == Move(upsert={"a": b"9", "c": b"3"}, delete=("b",))
    assert (replica.rows, replica.id, replica.digest) == (AFTER, VersionId(1, 2), SECOND.digest)
    assert replica.tables.hex == SECOND.tables_digest


def test_what_does_not_fit_changes_nothing() -> None:
    forged_row = replace(SECOND, delta=as_delta({"a": b"8", "c": b"3"}, ("b",), ring()))
    both = replace(SECOND, delta=as_delta({"a": b"9", "c": b"3", "b": b"2"}, ("b",), ring()))
    for manifest in (
        replace(SECOND, parent="other"),
        replace(SECOND, delta=None),
        replace(SECOND, digest="f" * 64),
        replace(SECOND, tables_digest="f" * 64),
        replace(SECOND, policy_digest="q"),
        forged_row,
        both,
    ):
        replica = _holding()
        assert replica.inline(manifest) is None
        assert (replica.rows, replica.id, replica.tables.hex) == (BEFORE, FIRST.id, FIRST.tables_digest)


def test_what_a_look_refuses_changes_nothing_and_sealed_rows_are_open_to_it() -> None:
    file, seen = {"f/x": b'{"content":"secret"}'}, list[Mapping[str, bytes]]()
    manifest = _version(2, BEFORE | file, FIRST.digest, BEFORE)
    assert manifest.delta is not None and b"secret" not in bytes(manifest.delta.upsert["f/x"])

    def refuse(rows: Mapping[str, bytes]) -> None:
        seen.append(rows)
        raise ValueError

    replica = _holding()
    with pytest.raises(ValueError):
        replica.inline(manifest, refuse)
    assert seen == [file]
    assert (replica.rows, replica.id, replica.tables.hex) == (BEFORE, FIRST.id, FIRST.tables_digest)
    assert replica.inline(manifest, seen.append) is not None
    assert replica.rows == BEFORE | file


def test_who_holds_nothing_cannot_move_by_a_delta() -> None:
    assert Replica(ring()).inline(replace(SECOND, parent="")) is None


def test_a_digest_kept_row_by_row_is_the_digest_of_all_rows_in_any_order() -> None:
    choice = random.Random(5)
    rows: dict[str, bytes] = {}
    kept = TableDigest()
    for n in range(500):
        key = f"k{choice.randrange(60)}"
        if key in rows:
            kept.remove(key, rows.pop(key))
        if choice.random() < 0.7:
            rows[key] = b"%d" % n
            kept.add(key, rows[key])
    shuffled = list(rows.items())
    choice.shuffle(shuffled)
    whole = digest_of(dict(shuffled))

    assert (kept.hex, kept.rows, kept.row_bytes) == (whole.hex, whole.rows, whole.row_bytes)


def test_key_and_row_do_not_run_into_each_other() -> None:
    assert digest_of({"ab": b"c"}).hex != digest_of({"a": b"bc"}).hex


def test_shards_double_with_the_size() -> None:
    assert [shard_count(n * SHARD_BYTES) for n in (0, 1, 2, 3, 5)] == [1, 1, 2, 4, 8]
