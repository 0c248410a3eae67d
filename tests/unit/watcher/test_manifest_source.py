"""A directory of real files -> changes of objects. `look` is called by the tests; nothing watches."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.shared.contracts.objects import AnyObject, Ingress, Key
from services.shared.contracts.problem import Reason
from services.watcher.changes import ObjectChanges
from services.watcher.sources.manifests import ManifestSource
from tests.support.manifests import ingress, service, several


def key(name: str, kind: str = "Ingress") -> Key:
    return Key(kind, "default", name)


def look(source: ManifestSource, *paths: str) -> ObjectChanges:
    """Look until nothing is in the middle of a change, and gather what changed."""
    gathered: ObjectChanges = {}
    named = paths or None
    for _ in range(500):
        changes = source.look(named)
        gathered |= changes.objects
        if not changes.again_after_seconds:
            return gathered
        time.sleep(changes.again_after_seconds)
        named = ()
    raise AssertionError("never settled")


def host(obj: AnyObject | None) -> str:
    assert isinstance(obj, Ingress)
    return obj.spec.rules[0].host


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


@pytest.fixture
def source(root: Path) -> ManifestSource:
    return ManifestSource(root)


def said(source: ManifestSource) -> list[tuple[str, Reason]]:
    return [(problem.field, problem.reason) for problem in source.problems if problem.severity == "error"]


def test_files_of_all_kinds_in_subdirectories_are_read_and_others_are_not(root: Path, source: ManifestSource) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "one.yaml").write_text(several(ingress("one"), service("web")))
    (root / "a" / "two.yml").write_text(ingress("two"))
    (root / "a" / "b" / "three.json").write_text(
        '{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}]}'
    )
    for junk in (".hidden.yaml", "x.yaml~", ".x.yaml.swp", "4913", "#x.yaml#", ".#x.yaml", "README.md", "x.yaml.bak", ".git/x.yaml"):
        (root / junk).write_text(ingress("junk"))
    os.mkfifo(root / "pipe.yaml")

    changes = look(source)

    assert set(changes) == {key("one"), key("two"), key("web", "Service"), Key("Namespace", "", "n")}
    assert not source.problems


def test_a_second_look_finds_nothing_and_an_edit_is_found_alone(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(several(ingress("a"), ingress("b")))
    look(source)
    assert look(source) == {}

    (root / "a.yaml").write_text(several(ingress("a"), ingress("b", host="new.example")))

    changes = look(source, "a.yaml")
    assert set(changes) == {key("b")} and host(changes[key("b")]) == "new.example"


def test_an_edit_of_the_same_size_in_the_same_instant_is_found(root: Path, source: ManifestSource) -> None:
    path = root / "a.yaml"
    path.write_text(ingress("a", host="aaaa.example"))
    for wanted in ("bbbb", "cccc", "dddd", "eeee", "ffff") * 10:
        look(source)
        stamps = path.stat()
        path.write_text(ingress("a", host=f"{wanted}.example"))
        os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))

        assert host(look(source)[key("a")]) == f"{wanted}.example"


def test_a_touched_file_changes_nothing(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(ingress("a"))
    look(source)
    (root / "a.yaml").touch()
    (root / "a.yaml").rename(root / "b.yaml")

    assert look(source) == {}


def test_a_deleted_file_takes_its_objects_with_it(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(several(ingress("a"), ingress("b")))
    (root / "c.yaml").write_text(ingress("c"))
    look(source)
    (root / "a.yaml").unlink()

    assert look(source) == {key("a"): None, key("b"): None}


def test_a_deleted_directory_takes_its_objects_with_it(root: Path, source: ManifestSource) -> None:
    (root / "d").mkdir()
    (root / "d" / "a.yaml").write_text(ingress("a"))
    look(source)
    (root / "d").rename(root.parent / "elsewhere")

    assert look(source, "d") == {key("a"): None}


def test_the_root_gone_takes_nothing_with_it(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(ingress("a"))
    look(source)
    root.rename(root.parent / "elsewhere")
    assert look(source) == {}
    assert said(source) == [(".", Reason.UNREADABLE_FILE)]

    root.mkdir()
    assert look(source) == {key("a"): None}
    assert not source.problems


def test_a_directory_that_is_not_there_yet_is_not_an_empty_one(tmp_path: Path) -> None:
    source = ManifestSource(tmp_path / "later")
    look(source)
    assert not source.complete

    (tmp_path / "later").mkdir()
    look(source)
    assert source.complete


# --- editors


Save = Callable[[Path, str], Iterator[None]]


def save_in_place(path: Path, text: str) -> Iterator[None]:
    """nano, shell redirection: truncate, write, close."""
    with path.open("w") as file:
        yield
        file.write(text[:40])
        file.flush()
        yield
        file.write(text[40:])


def save_by_rename(path: Path, text: str) -> Iterator[None]:
    """Most editors: a temporary file over the old one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    yield
    temporary.rename(path)


def save_like_vim(path: Path, text: str) -> Iterator[None]:
    """The old file becomes the backup; a new one is written; the backup goes."""
    backup = path.with_name(path.name + "~")
    path.rename(backup)
    yield
    with path.open("w") as file:
        yield
        file.write(text)
        file.flush()
        yield
    backup.unlink()


def save_by_unlink(path: Path, text: str) -> Iterator[None]:
    """`git checkout`, rsync --inplace's cousins: remove, then write."""
    path.unlink()
    yield
    path.write_text(text)


@pytest.mark.parametrize("save", [save_in_place, save_by_rename, save_like_vim, save_by_unlink])
def test_while_an_editor_saves_the_old_content_stays(root: Path, source: ManifestSource, save: Save) -> None:
    path = root / "a.yaml"
    path.write_text(several(ingress("a"), ingress("b")))
    look(source)

    for _ in save(path, several(ingress("a"), ingress("b", host="new.example"))):
        assert source.look().objects == {}
        assert source.look(["a.yaml"]).objects == {}

    changes = look(source)
    assert set(changes) == {key("b")} and host(changes[key("b")]) == "new.example"


def test_a_file_that_stays_open_for_writing_counts_once_it_is_quiet(root: Path, source: ManifestSource) -> None:
    with (root / "a.yaml").open("w") as file:
        file.write(ingress("a"))
        file.flush()
        assert set(look(source)) == {key("a")}


def test_symbolic_links_as_the_kubelet_mounts_a_configmap(root: Path, source: ManifestSource) -> None:
    for generation, name in ((1, "one"), (2, "two")):
        (root / f"..{generation}").mkdir()
        (root / f"..{generation}" / "a.yaml").write_text(ingress("a", host=f"{name}.example"))
    (root / "..data").symlink_to("..1")
    (root / "a.yaml").symlink_to("..data/a.yaml")
    assert host(look(source)[key("a")]) == "one.example"

    (root / "..tmp").symlink_to("..2")
    (root / "..tmp").rename(root / "..data")

    assert host(look(source)[key("a")]) == "two.example"


def test_links_that_lead_back_up_or_nowhere_do_no_harm(root: Path, source: ManifestSource) -> None:
    (root / "d").mkdir()
    (root / "d" / "up").symlink_to(root)
    (root / "dangling.yaml").symlink_to("nowhere")
    (root / "loop.yaml").symlink_to("loop.yaml")
    (root / "d" / "a.yaml").write_text(ingress("a"))

    assert set(look(source)) == {key("a")}


# --- what is wrong


def test_a_file_that_does_not_parse_keeps_its_last_good_content_and_is_named(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(ingress("a"))
    (root / "b.yaml").write_text(ingress("b"))
    look(source)
    (root / "a.yaml").write_text("a: 1\nb: [\n")
    (root / "b.yaml").write_text(ingress("b", host="new.example"))

    assert set(look(source)) == {key("b")}
    assert said(source) == [("a.yaml:3", Reason.UNREADABLE_FILE)]
    assert "last good content stays" in source.problems[0].message

    (root / "a.yaml").write_text(ingress("a", host="fixed.example"))
    assert host(look(source)[key("a")]) == "fixed.example"
    assert not source.problems


def test_an_invalid_object_keeps_its_last_good_form_and_others_in_the_file_go_on(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(several(service("web"), ingress("a")))
    look(source)
    (root / "a.yaml").write_text(several(service("web").replace("port: 80", "port: eighty"), ingress("a", host="new.example")))

    assert set(look(source)) == {key("a")}
    (problem,) = source.problems
    assert (problem.field, problem.reason, problem.object) == ("a.yaml:4", Reason.INVALID_OBJECT, "Service default/web")
    assert problem.message == "spec.ports[0].port: expected a number, got text; the last good form stays in effect"


def test_an_object_that_lost_its_name_is_not_deleted(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(several(ingress("a"), ingress("b")))
    look(source)
    (root / "a.yaml").write_text(several(ingress("a"), ingress("b").replace("name: b", "name: ''")))
    assert look(source) == {}

    (root / "a.yaml").write_text(ingress("a"))
    assert look(source) == {key("b"): None}


def test_of_two_files_with_one_object_the_first_in_order_counts(root: Path, source: ManifestSource) -> None:
    (root / "b.yaml").write_text(ingress("x", host="b.example"))
    look(source)
    (root / "c.yaml").write_text(ingress("x", host="c.example"))
    assert look(source) == {}
    assert said(source) == [("c.yaml:1", Reason.INVALID_OBJECT)]

    (root / "a.yaml").write_text(ingress("x", host="a.example"))
    assert host(look(source)[key("x")]) == "a.example"

    (root / "a.yaml").unlink()
    assert host(look(source)[key("x")]) == "b.example"
    (root / "b.yaml").unlink()
    assert host(look(source)[key("x")]) == "c.example"
    assert not source.problems


def test_an_object_twice_in_one_file_is_the_first(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(several(ingress("x", host="one.example"), ingress("x", host="two.example")))

    assert host(look(source)[key("x")]) == "one.example"
    assert said(source) == [("a.yaml:12", Reason.INVALID_OBJECT)]


def test_kinds_that_are_not_read_are_a_note(root: Path, source: ManifestSource) -> None:
    (root / "a.yaml").write_text(several(*["apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n"] * 3))

    assert look(source) == {}
    (note,) = source.problems
    assert note.severity == "warning" and "apps/v1 Deployment: 3 ignored" in note.message


def test_hostile_names_and_content_stay_printable(root: Path, source: ManifestSource) -> None:
    (root / "a\n\x1b[31m.yaml").write_text('apiVersion: v1\nkind: Service\nmetadata: {name: "\\e]0;x\\a"}\n')
    look(source)

    (problem,) = source.problems
    assert all(" " <= c <= "~" for c in problem.field + problem.message + problem.object)


# --- after a restart


def test_a_restart_beside_an_unreadable_file_deletes_nothing_that_it_may_have_held(root: Path) -> None:
    before = ManifestSource(root)
    (root / "a.yaml").write_text(ingress("a"))
    (root / "b.yaml").write_text(ingress("b"))
    (root / "gone.yaml").write_text(ingress("gone"))
    stored = {k: obj for k, obj in look(before).items() if obj is not None}
    (root / "a.yaml").write_text("a: [\n")
    (root / "gone.yaml").unlink()

    after = ManifestSource(root)
    after.adopt(stored)
    # `gone` may have been in a.yaml, for all that is known: it stays until a.yaml can be read.
    assert {k for k, obj in look(after).items() if obj is not None} == {key("a"), key("b"), key("gone")}

    (root / "a.yaml").write_text(ingress("a", host="fixed.example"))
    changes = look(after)
    assert changes[key("gone")] is None and host(changes[key("a")]) == "fixed.example"
    assert set(changes) == {key("a"), key("gone")}


def test_a_restart_beside_an_invalid_object_keeps_the_form_in_the_stream(root: Path) -> None:
    before = ManifestSource(root)
    (root / "a.yaml").write_text(several(ingress("a"), ingress("gone")))
    stored = {k: obj for k, obj in look(before).items() if obj is not None}
    (root / "a.yaml").write_text(ingress("a").replace("path: /", "path: 7"))

    after = ManifestSource(root)
    after.adopt(stored)

    assert look(after) == {key("a"): stored[key("a")]}
    assert [p.object for p in after.problems] == ["Ingress default/a"]
