"""What a compiler died of: how notes outlive it, who is suspected, who is left alone, and when that ends."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.compiler import hosts, ingresses
from services.compiler.crashes import LIMIT, MOST_KEPT, MOST_SUSPECTS, Crashes, Suspect, suspect_of, suspect_of_review
from services.compiler.engine import Engine
from services.compiler.hosts import LoweredHost
from services.compiler.ingresses import ReadIngress
from services.shared.contracts.delta import Delta
from services.shared.contracts.objects import Ingress, Key
from services.shared.flags import Flags
from tests.support.compiling import delete, small_world, upsert
from tests.support.objects import ingress

_numbers = itertools.count()


def _next_life(directory: Path) -> Path:
    """What the kernel keeps of a process that was killed: the file, as far as it was written."""
    after = directory.with_name(f"life-{next(_numbers)}")
    shutil.copytree(directory, after)
    return after


class Lives:
    """One compiler after another, each with the whole world, until one survives."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "first"
        self.world = {d.key: d for d in small_world(4)}
        self.deaths = 0
        self.engine = self._begin()

    def _begin(self) -> Engine:
        self.crashes = Crashes(self.directory)
        engine = Engine(Flags(), crashes=self.crashes)
        for delta in self.world.values():
            engine.apply(delta)
        return engine

    def change(self, *deltas: Delta) -> None:
        for delta in deltas:
            self.world[delta.key] = delta
            self.engine.apply(delta)
        self.compile()

    def compile(self) -> None:
        while True:
            try:
                self.engine.compile()
            except MemoryError:
                self.deaths += 1
                assert self.deaths < 20
                self.restart()
            else:
                return

    def restart(self) -> None:
        self.directory = _next_life(self.directory)
        self.engine = self._begin()

    def problems(self, name: str) -> str:
        verdict = self.engine.verdict(Key("Ingress", "default", name))
        return " ".join(p.message for p in verdict.problems if not verdict.accepted) if verdict else ""

    @property
    def hosts(self) -> set[str]:
        return {key[2:] for key in self.engine.rows if key.startswith("h/")}


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    made = Lives(tmp_path)
    made.compile()
    return made


def _dies_reading(monkeypatch: pytest.MonkeyPatch, dies: Callable[[Ingress], bool]) -> None:
    def read(found: Ingress, *rest: Any) -> ReadIngress:
        if dies(found):
            raise MemoryError
        return read_before(found, *rest)

    read_before = ingresses.read_ingress
    monkeypatch.setattr("services.compiler.engine.read_ingress", read)


def _dies_lowering(monkeypatch: pytest.MonkeyPatch, dies: Callable[[str, list[ReadIngress]], bool]) -> None:
    def lower(host: str, those: list[ReadIngress], *rest: Any) -> LoweredHost | None:
        if dies(host, those):
            raise MemoryError
        return lower_before(host, those, *rest)

    lower_before = hosts.lower_host
    monkeypatch.setattr("services.compiler.engine.lower_host", lower)


def _has(*hosts: str) -> Callable[[Ingress], bool]:
    return lambda found: any(rule.host in hosts for rule in found.spec.rules)


def _at(name: str, *hosts: str, **more: Any) -> Delta:
    return upsert(ingress(name, {host: {f"/{name}": "web-0"} for host in hosts}, **more))


# --- through the engine


def test_the_form_before_stands_until_the_object_changes(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_reading(monkeypatch, _has("x.com"))
    lives.change(_at("shop", "older.com"))
    lives.change(_at("shop", "shop.com"))
    before = dict(lives.engine.rows)
    lives.change(_at("shop", "shop.com", "x.com"))
    assert lives.deaths == LIMIT
    assert lives.engine.rows == before
    assert "died 2 times" in lives.problems("shop") and "the form before stays" in lives.problems("shop")

    lives.change(_at("other", "other.com"))
    lives.restart()
    lives.compile()
    assert lives.deaths == LIMIT, "nor in another life"
    assert {"shop.com", "other.com"} <= lives.hosts

    lives.change(_at("shop", "mended.com"))
    assert "mended.com" in lives.hosts
    assert not lives.problems("shop")
    assert (lives.deaths, lives.crashes.left_alone) == (LIMIT, 0)
    assert (lives.directory / "strikes.json").read_bytes() == b"[]"


def test_another_bad_form_falls_back_to_the_same_good_one(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_reading(monkeypatch, _has("x.com", "y.com"))
    lives.change(_at("shop", "shop.com"))
    lives.change(_at("shop", "x.com"))
    lives.change(_at("shop", "y.com"))
    assert lives.deaths == 2 * LIMIT
    assert "shop.com" in lives.hosts


def test_two_that_change_at_once_both_keep_their_form_before(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_reading(monkeypatch, _has("x.com", "y.com"))
    lives.change(_at("a", "a.com"), _at("b", "b.com"))
    lives.change(_at("a", "x.com"), _at("b", "y.com"))
    assert lives.deaths == 2 * LIMIT
    assert {"a.com", "b.com"} <= lives.hosts


def test_a_new_one_is_left_out_and_a_deleted_one_is_forgotten(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_reading(monkeypatch, _has("x.com"))
    before = lives.hosts
    lives.change(_at("shop", "x.com"))
    assert lives.deaths == LIMIT
    assert lives.hosts == before
    assert "it is left out" in lives.problems("shop")
    lives.change(delete(_at("shop", "x.com")))
    assert (lives.problems("shop"), lives.crashes.left_alone) == ("", 0)
    assert (lives.directory / "strikes.json").read_bytes() == b"[]"


def test_a_form_before_that_kills_as_well_is_given_up(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    lives.change(_at("shop", "shop.com"))
    _dies_reading(monkeypatch, _has("x.com", "shop.com"))
    before = lives.hosts - {"shop.com"}
    lives.change(_at("shop", "x.com"))
    assert lives.deaths == 2 * LIMIT
    assert lives.hosts == before


def test_of_a_host_that_several_share_only_the_one_that_changed_is_left_alone(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    _dies_lowering(monkeypatch, lambda host, those: host == "shared.com" and any(p.path == "/bad" for i in those for p in i.paths))
    lives.change(_at("one", "shared.com"), _at("two", "shared.com"))
    lives.change(upsert(ingress("two", {"shared.com": {"/bad": "web-0"}})))
    assert lives.deaths == LIMIT
    assert not lives.problems("one")
    assert "the form before stays" in lives.problems("two")
    row = lives.engine.rows["h/shared.com"]
    assert b'"/one"' in row and b'"/two"' in row and b"/bad" not in row


def test_a_death_at_another_moment_is_forgotten_once_all_is_compiled(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3 * LIMIT):
        with monkeypatch.context() as patch:
            killed = iter([True])
            _dies_reading(patch, lambda found, killed=killed: found.metadata.name == "app-1" and next(killed, False))  # type: ignore[misc]
            lives.change(upsert(ingress("app-1", {f"n{n}.com": {"/": "web-1"}})))
        lives.restart()
        lives.compile()
    assert lives.deaths == 3 * LIMIT
    assert not lives.problems("app-1")
    assert lives.crashes.left_alone == 0


def test_what_stands_for_it_is_not_given_up_for_deaths_at_other_moments(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    lives.change(_at("shop", "shop.com"))
    with monkeypatch.context() as patch:
        _dies_reading(patch, _has("x.com"))
        lives.change(_at("shop", "x.com"))
        for _ in range(3 * LIMIT):
            lives.restart()
            with monkeypatch.context() as once:
                killed = iter([True])
                _dies_reading(once, lambda found, killed=killed: _has("shop.com")(found) and next(killed, False))  # type: ignore[misc]
                lives.compile()
    assert lives.deaths == 4 * LIMIT
    assert "shop.com" in lives.hosts


def test_between_two_compiles_nothing_is_in_hand(lives: Lives) -> None:
    for _ in range(3 * LIMIT):
        lives.change(_at("shop", "shop.com"))
        lives.change(_at("shop", "other.com"))
        lives.restart()
        lives.compile()
        assert not (lives.directory / "strikes.json").exists()


# --- the notes


def _bad(n: int = 0, kind: str = "Ingress") -> Suspect:
    return Suspect(kind, "default", f"bad-{n}", "digest")


def _die(directory: Path, *suspects: Suspect) -> Path:
    """One life that ends with these in hand."""
    Crashes(directory).note(*suspects)
    return _next_life(directory)


def test_a_form_is_what_annotations_and_spec_say() -> None:
    def of(**metadata: Any) -> Suspect:
        made = ingress("shop", {"shop.com": {"/": "web"}}, annotations={"app-root": "/x"})
        found = upsert({**made, "metadata": made["metadata"] | metadata}).object
        assert isinstance(found, Ingress)
        return suspect_of(found)

    assert of() == of(resourceVersion="7", labels={"a": "b"}, uid="other")
    assert of() != of(annotations={})


def test_a_review_is_known_again_under_another_name() -> None:
    one, two, other = (
        suspect_of_review("default", {"metadata": {"name": n, "annotations": {"a": a}}, "spec": {}})
        for n, a in (("one", ""), ("two", ""), ("two", "b"))
    )
    assert one == two != other
    assert suspect_of_review("default", {"metadata": "none"}).kind == "Review"


def test_a_review_stays_suspected_until_it_goes_well(tmp_path: Path) -> None:
    directory = _die(tmp_path / "first", _bad(kind="Review"))
    crashes = Crashes(directory)
    crashes.settle()
    directory = _die(_next_life(directory), _bad(kind="Review"))
    crashes = Crashes(directory)
    assert crashes.held(_bad(kind="Review")) is not None
    crashes.fine(_bad(kind="Review"))
    assert Crashes(_next_life(directory)).held(_bad(kind="Review")) is None


def test_only_deaths_in_a_row_with_the_same_form_count(tmp_path: Path) -> None:
    directory = _die(tmp_path / "first", _bad())
    directory = _die(directory, Suspect("Ingress", "default", "bad-0", "another"))
    directory = _die(directory, _bad())
    assert Crashes(directory).held(_bad()) is None
    directory = _die(_next_life(directory), _bad())
    assert Crashes(directory).held(_bad()) is not None
    assert Crashes(_next_life(directory)).held(Suspect("Ingress", "default", "bad-0", "another")) is None


def test_only_one_without_a_good_form_can_be_acquitted(tmp_path: Path) -> None:
    found = _at("shop", "shop.com").object
    assert isinstance(found, Ingress)
    directory = tmp_path / "first"
    for _ in range(LIMIT):
        crashes = Crashes(directory)
        crashes.batch([found])
        crashes.note(suspect_of(found), _bad())
        directory = _next_life(directory)
    crashes = Crashes(directory)
    assert crashes.doubtful == {("default", "bad-0")}
    crashes.acquit("default", "bad-0")
    crashes.acquit("default", "shop")
    after = Crashes(_next_life(directory))
    assert (after.held(_bad()), after.doubtful) == (None, set())
    assert after.held(suspect_of(found)) is not None


@pytest.mark.parametrize("torn", [b"", b"\xff\xff\xff\xff", b"\x05\x00\x00\x00{{{{{", b"\x04\x00\x00\x00[42]"])
def test_what_cannot_be_read_is_nothing(tmp_path: Path, torn: bytes) -> None:
    directory = tmp_path / "notes"
    directory.mkdir()
    (directory / "in-hand").write_bytes(torn)
    (directory / "strikes.json").write_bytes(torn)
    for _ in range(LIMIT):
        directory = _die(directory, _bad())
    assert Crashes(directory).held(_bad()) is not None


def test_without_room_or_rights_or_alone_there_are_no_notes_and_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    first = Crashes(tmp_path / "notes")
    first.note(_bad())
    for other in (Crashes(tmp_path / "notes"), Crashes(tmp_path / "file"), Crashes()):
        other.note(_bad(1))
        other.batch([])
        other.done()
        other.settle()
        assert other.held(_bad(1)) is None
    after = _next_life(tmp_path / "notes")
    Crashes(after)
    assert '"bad-0"' in (after / "strikes.json").read_text()


def test_notes_are_bounded(tmp_path: Path) -> None:
    large = [_at(f"i{n}", *(f"h{k}.example.com" for k in range(500))).object for n in range(40)]
    directory = tmp_path / "first"
    for life in range(8):
        crashes = Crashes(directory)
        crashes.batch(found for found in large if isinstance(found, Ingress))
        crashes.note(*(_bad(1000 * life + n) for n in range(1000)))
        directory = _next_life(directory)
    Crashes(directory)
    assert (directory / "in-hand").stat().st_size == 1 << 20
    stored = (directory / "strikes.json").read_text()
    assert stored.count('"suspect"') == MOST_KEPT
    assert stored.count('"bad-7') == MOST_SUSPECTS
    assert '"bad-7999"' in stored
