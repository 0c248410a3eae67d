"""Hostile files beside innocent ones: the innocent ones are read, the hostile ones named, nothing else happens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.shared.contracts.objects import Key
from services.watcher.sources.manifests import ManifestSource
from tests.support.manifests import ingress, several

HEAD = "apiVersion: networking.k8s.io/v1\nkind: Ingress\n"

POISON: dict[str, bytes] = {
    "binary": bytes(range(256)) * 64,
    "nul": b"a: \x00\n",
    "bom": b"\xef\xbb\xbf" + b"\xef\xbb\xbf: [",
    "utf16": "kind: Ingress".encode("utf-16"),
    "tabs": b"kind:\n\t- x\n",
    "unclosed": HEAD.encode() + b"metadata: {name: 'x\n",
    "python": b"!!python/object/apply:os.system ['touch /tmp/pwned']\n",
    "deep": b"[" * 200_000,
    "laughs": b"a: &a [x,x]\n"
    + b"".join(b"b%d: &b%d [*%s,*%s]\n" % (n, n, b, b) for n in range(60) for b in [b"a" if not n else b"b%d" % (n - 1)]),
    "number": b"kind: " + b"9" * 1_000_000 + b"\n",
    "long-line": b"x" * 5_000_000,
    "many-in-a-list": b"apiVersion: v1\nkind: List\nitems:\n" + b"- x\n" * 20_000,
    "many": b"---\nx\n" * 20_000,
    "text": b"just some words\n",
    "list-of-lists": b"{kind: List, apiVersion: v1, items: [" + b"{kind: List, apiVersion: v1, items: [" * 40 + b"]}" * 41,
    "kind-is-a-map": b"kind: {a: b}\napiVersion: v1\n",
    "name-is-a-list": HEAD.encode() + b"metadata: {name: [a]}\n",
    "name-escapes": HEAD.encode() + b'metadata: {name: "../../etc/passwd"}\n',
    "name-newline": HEAD.encode() + b'metadata: {name: "a\\nb"}\n',
    "name-nats": HEAD.encode() + b'metadata: {name: "a.>"}\n',
    "namespace-dots": HEAD.encode() + b"metadata: {name: a, namespace: a.b}\n",
    "surrogate": HEAD.encode() + b'metadata: {name: a, annotations: {b: "\\ud800"}}\n',
    "spec-is-text": HEAD.encode() + b"metadata: {name: bad}\nspec: text\n",
    "huge-secret": b"apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: '" + b"A" * 2_000_001 + b"'}\n",
    "infinite": b"apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: .inf}]}\n",
    "recursive": b"apiVersion: v1\nkind: Service\nmetadata: &m {name: s, labels: *m}\n",
}


@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_file_harms_only_itself(tmp_path: Path, name: str) -> None:
    innocent = [f"good{n}" for n in range(5)]
    for each in innocent:
        (tmp_path / f"{each}.yaml").write_text(ingress(each))
    for suffix in ("yaml", "json"):
        (tmp_path / f"bad.{suffix}").write_bytes(POISON[name])
    source = ManifestSource(tmp_path)

    read = source.look()

    assert set(read.objects) == {Key("Ingress", "default", each) for each in innocent}
    assert all(problem.field.startswith("bad.") for problem in source.problems)
    assert all(" " <= c <= "~" for problem in source.problems for c in problem.sentence())
    assert any(p.field.startswith("bad.json:") for p in source.problems)
    assert any(p.field.startswith("bad.yaml:") for p in source.problems)
    assert source.look().objects == {}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_no_content_raises(tmp_path: Path, data: bytes) -> None:
    for suffix in ("yaml", "json"):
        (tmp_path / f"x.{suffix}").write_bytes(data)
    source = ManifestSource(tmp_path)

    source.look()

    assert not any("error of the watcher" in problem.message for problem in source.problems)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(order=st.permutations(range(8)), cuts=st.sets(st.integers(1, 7)))
def test_how_objects_are_spread_over_files_does_not_show(tmp_path: Path, order: list[int], cuts: set[int]) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    documents = [ingress(f"i{n}") for n in order]
    bounds = [0, *sorted(cuts), 8]
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        (tmp_path / f"f{number}.yaml").write_text(several(*documents[start:end]))

    objects = ManifestSource(tmp_path).look().objects

    assert objects == {obj_key: obj for obj_key, obj in reference(tmp_path).items()}


_REFERENCE: dict[Key, object] = {}


def reference(tmp_path: Path) -> dict[Key, object]:
    """The eight objects as the first call read them."""
    if not _REFERENCE:
        _REFERENCE.update(ManifestSource(tmp_path).look().objects)
    return _REFERENCE
