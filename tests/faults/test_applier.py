"""The applier dies, hangs, is lied to, or finds its disk spoiled: nginx stays on one whole version, and the next applier finishes."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.shared.contracts.report import NodeReport
from services.shared.contracts.subjects import CONFIG_STREAM, blob_subject, config_subject
from services.shared.contracts.version import decode_manifest, encode_manifest
from tests.support.node import NEW_POLICY, Rig, one_node, or_nothing, running
from tests.support.up import get

pytestmark = [pytest.mark.nats, pytest.mark.nginx]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with one_node(tmp_path) as made:
        yield made


@pytest.mark.parametrize("point", ["fetched", "verified", "written", "tested", "switched", "reloaded", "confirmed", "committed"])
async def test_killed_at_any_step_nginx_serves_and_the_next_applier_finishes(rig: Rig, point: str) -> None:
    await running(rig)
    rig.send(signal.SIGKILL)
    await rig.ended()
    second = await rig.commit("two.example.com", NEW_POLICY)

    rig.start(failpoint=point)
    assert await rig.ended() == -signal.SIGKILL
    one, two = await rig.status("one.example.com"), await rig.status("two.example.com")
    assert sorted((one, two)) == [200, 404], "one whole version, the old or the new"

    rig.start()
    await rig.live(second)
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (404, 200)


async def test_a_reload_that_does_not_take_is_noticed_and_undone(rig: Rig) -> None:
    await running(rig)
    link = rig.directory / "lua"
    shipped = link.readlink()
    broken = rig.directory / "broken"
    broken.mkdir()
    for part in shipped.iterdir():
        (broken / part.name).symlink_to(part)
    (broken / "init.lua").unlink()
    (broken / "init.lua").write_text('error("no")\n')
    link.unlink()
    link.symlink_to(broken)

    second = await rig.commit("two.example.com", NEW_POLICY)
    report = await rig.report(lambda r: "did not take" in r.last_error)
    assert report.deferred_count == 1
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (200, 404)

    link.unlink()
    link.symlink_to(shipped)
    await rig.report(lambda r: r.number == second.number and not r.deferred_count)
    assert await rig.status("two.example.com") == 200


async def test_a_lua_error_in_the_request_path_is_noticed_and_undone(rig: Rig) -> None:
    await running(rig)
    link = rig.directory / "lua"
    shipped = link.readlink()
    broken = rig.directory / "broken"
    broken.mkdir()
    for part in shipped.iterdir():
        (broken / part.name).symlink_to(part)
    (broken / "router.lua").unlink()
    (broken / "router.lua").write_text("this is not Lua\n")
    link.unlink()
    link.symlink_to(broken)

    await rig.commit("two.example.com", NEW_POLICY)
    await rig.report(lambda r: "does not come through" in r.last_error)
    link.unlink()
    link.symlink_to(shipped)
    await rig.report(lambda r: not r.deferred_count and r.generation > 1)
    assert await rig.status("two.example.com") == 200


@pytest.mark.parametrize("spoil", ["flip", "truncate", "empty"])
async def test_a_spoiled_last_known_good_falls_to_the_one_before(rig: Rig, spoil: str) -> None:
    await running(rig)
    second = await rig.commit("two.example.com", NEW_POLICY)
    await rig.report(lambda r: r.number == second.number and not r.deferred_count)
    rig.send(signal.SIGTERM)
    await rig.ended()
    tables = rig.directory / "current" / "tables.tsv"
    data = tables.read_bytes()
    middle = len(data) // 2
    tables.write_bytes({"flip": data[:middle] + b"\x00" + data[middle + 1 :], "truncate": data[:middle], "empty": b""}[spoil])
    rig.server.kill()

    rig.start()
    async with asyncio.timeout(12):
        while await or_nothing(rig, "one.example.com") != 200:
            await asyncio.sleep(0.05)

    await rig.server.start()
    report = await rig.live(second)
    assert "is not used" in report.last_error
    assert await rig.status("two.example.com") == 200


async def test_starts_and_serves_without_the_bus(rig: Rig) -> None:
    await running(rig)
    rig.send(signal.SIGTERM)
    await rig.ended()
    rig.server.kill()
    rig.start()
    async with asyncio.timeout(12):
        while await or_nothing(rig, "one.example.com") != 200:
            await asyncio.sleep(0.05)
    assert (await asyncio.to_thread(get, rig.health, "x", "/healthz"))[0] == 200
    assert (await asyncio.to_thread(get, rig.health, "x", "/readyz"))[0] == 503


async def test_older_foreign_and_forged_versions_are_refused(rig: Rig) -> None:
    first = await running(rig)
    second = await rig.commit("two.example.com")
    await rig.live(second)

    async def publish(**changes: Any) -> None:
        await rig.bus.publish(config_subject("default"), encode_manifest(msgspec.structs.replace(second, **changes)))

    await publish(number=first.number, digest=first.digest, policy_digest=first.policy_digest, tables_digest=first.tables_digest)
    await publish(group="other", number=second.number + 1)
    await rig.report(lambda r: "is for group other" in r.last_error)
    await publish(number=second.number + 2, tables_digest="0" * 64, delta=None)
    report = await rig.report(lambda r: r.last_error != "" and "group" not in r.last_error)
    assert (report.number, report.digest) == (second.number, second.digest)
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (404, 200)
    newest = await rig.bus.last(CONFIG_STREAM, config_subject("default"))
    assert newest is not None
    assert decode_manifest(newest.payload).number == second.number + 2


async def test_a_version_whose_policies_are_spoiled_on_the_bus_waits_until_they_are_whole(rig: Rig) -> None:
    first = await running(rig)
    rig.send(signal.SIGSTOP)  # it asks for them once they are spoiled
    second = await rig.commit("two.example.com", NEW_POLICY)
    good = await rig.bus.get_blob(second.policy_digest)
    assert good is not None
    flipped = good[:-10] + bytes([good[-10] ^ 1]) + good[-9:]
    await rig.bus.publish(blob_subject(second.policy_digest, 0), flipped)
    rig.send(signal.SIGCONT)
    report = await rig.report(lambda r: "cannot be read" in r.last_error)
    assert report.number == first.number
    assert (await rig.status("one.example.com"), await rig.status("two.example.com")) == (200, 404)

    await rig.bus.publish(blob_subject(second.policy_digest, 0), good)
    await rig.live(second)
    assert await rig.status("two.example.com") == 200


def _took_all_but(number: int, report: NodeReport) -> bool:
    return report.number == number and not report.deferred_count and bool(report.refused)


async def test_a_global_policy_that_nginx_refuses_without_naming_it_stays_as_it_was_and_holds_up_nothing(rig: Rig) -> None:
    await running(rig)
    ciphers = re.compile(r"ssl_ciphers [^;]+")
    for host, policy in (("two.example.com", None), ("three.example.com", NEW_POLICY)):
        number = (await rig.commit(host, policy, lambda text: ciphers.sub("ssl_ciphers NONSENSE", text))).number
        report = await rig.report(partial(_took_all_but, number))
        assert await rig.status(host) == 200
        assert all("SSL_CTX_set_cipher_list" in words for words in report.refused.values())
        assert len(report.refused) == 1
    await rig.live(await rig.commit("four.example.com"))
    assert not (await rig.report(lambda r: not r.refused)).deferred_count


async def test_a_second_applier_on_the_same_node_ends_with_a_sentence(rig: Rig, tmp_path: Path) -> None:
    await running(rig)
    first = rig._process
    rig.start()
    assert await rig.ended() == 1
    rig._process = first
    assert "another applier runs on" in (tmp_path / "applier.log").read_text()


async def test_nginx_killed_comes_back_with_its_rows(rig: Rig) -> None:
    first = await running(rig)
    await rig.commit("two.example.com")
    third = await rig.commit("three.example.com")
    await rig.live(third)
    master = rig.nginx
    for process in (*master.children(), master):
        process.kill()
    async with asyncio.timeout(12):
        while await or_nothing(rig, "three.example.com") != 200:
            await asyncio.sleep(0.05)
    assert await rig.status("one.example.com") == 404
    assert third.number > first.number
