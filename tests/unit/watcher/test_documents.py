"""Text of a manifest file -> documents: what kubectl would read, bounded, with lines."""

from __future__ import annotations

from typing import Any

import pytest

from services.watcher.sources.documents import Unreadable, line_of, read_documents


def values(text: str, *, is_json: bool = False) -> list[Any]:
    return [document.value for document in read_documents(text.encode(), is_json=is_json)]


def error(text: str | bytes, *, is_json: bool = False) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        read_documents(text.encode() if isinstance(text, str) else text, is_json=is_json)
    return caught.value


def test_documents_are_separated_where_kubectl_separates_them() -> None:
    text = "# head\n---\na: 1\n---   # with a comment\nb: 2\n---\n---\n# only a comment\n--- {c: 3}\n...\n"

    documents = read_documents(text.encode(), is_json=False)

    assert [d.value for d in documents] == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert [d.line for d in documents] == [2, 4, 9]


def test_a_separator_inside_a_line_or_indented_is_text() -> None:
    assert values("a: |\n  x\n  ---\n  y\nb: --- no\n") == [{"a": "x\n---\ny\n", "b": "--- no"}]


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "---\n---\n", "%YAML 1.2\n---\n"])
def test_nothing_in_a_file_is_no_documents(text: str) -> None:
    assert values(text) == []


@pytest.mark.parametrize(
    ("scalar", "meant"),
    [
        ("yes", True), ("off", False), ("On", True), ("n", False), ("true", True), ("False", False),
        ('"yes"', "yes"), ("'on'", "on"), ("yesterday", "yesterday"), ("on-call", "on-call"), ("no.example", "no.example"),
        ("0777", 511), ("0b11", 3), ("1_000", 1000), ("0x1F", 31), ('"0777"', "0777"), ("8080", 8080), ("+1", 1), ("-0", 0),
        ("1e3", 1000.0), ("0.10", 0.1), ("1.2.3", "1.2.3"), ("1:30", "1:30"), ("10.0.0.1", "10.0.0.1"), ("09", 9.0),
        ("2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"), ("2026-03-01", "2026-03-01"),
        ("~", None), ("null", None), ("", None), ("!!str 1", "1"), ("!!str yes", "yes"), ("0o17", 15), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_mean_what_they_mean_to_kubectl(scalar: str, meant: object) -> None:
    assert values(f"a: {scalar}\nb: [{scalar or '~'}]\n") == [{"a": meant, "b": [meant]}]


@pytest.mark.parametrize(("text", "meant"), [("yes", True), ("!!str 1", "1"), ("0777", 511), ("a:\n- on\n- 1_0", {"a": [True, 10]})])
def test_the_first_scalar_of_a_document_means_what_it_means_to_kubectl(text: str, meant: object) -> None:
    assert values(text) == [meant]


def test_anchors_aliases_and_merge_keys_are_followed() -> None:
    text = "base: &b {v: 1, w: 2}\nall: *b\nmore:\n  <<: *b\n  w: 3\n"

    assert values(text) == [{"base": {"v": 1, "w": 2}, "all": {"v": 1, "w": 2}, "more": {"v": 1, "w": 3}}]


def test_text_that_only_looks_like_another_dialect_stays_as_it_is() -> None:
    snippet = "a: |\n  more_set_headers 'X: on';\n  if ($x = !no) { return 0777; }\n  <<\n"

    assert values(snippet)[0]["a"].splitlines()[1] == "if ($x = !no) { return 0777; }"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 'x\n", 3, "quoted scalar"),
        ("a: 1\n---\nb: 1\nc:\n\td: 1\n", 5, "tab|token"),
        ("a: 1\nb:\n  c: 1\n  c: 2\n", 4, 'duplicate entry with key "c"'),
        ("ok: 1\n---\nc: 2\nd: [1\n", 5, "flow sequence"),
        ("x: 1\ny: \x01\n", 2, "control characters"),
        ("a: !!python/object/apply:os.system [id]\n", 1, "could not determine a constructor"),
        ("a: *nowhere\n", 1, "anchor|alias"),
        ("a: 1\nb: : 2\n", 2, "not allowed"),
    ],
)
def test_an_error_names_its_line(text: str, line: int, said: str) -> None:
    found = error(text)

    assert found.line == line
    assert any(word in found.message for word in said.split("|")), found.message


def test_bytes_that_are_not_utf8_are_an_error_at_their_line() -> None:
    assert error(b"a: 1\nb: \xff\xfe\n").line == 2


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 100_000,
        "a: " + "[" * 5_000 + "]" * 5_000,
        "- " * 100_000 + "x",
        "".join(f"{' ' * depth}a:\n" for depth in range(1_000)),
        "{a: " * 10_000 + "}" * 10_000,
        "yes: " + "[" * 5_000 + "]" * 5_000,
        "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
        "on: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 5)),
        "a: &a [*a]\n",
    ],
    ids=["flow", "closed", "dashes", "block", "mappings", "dialect", "billion-laughs", "laughs-in-dialect", "self"],
)
def test_bombs_are_refused(bomb: str) -> None:
    error(bomb)


def test_a_file_has_bounds_of_its_own() -> None:
    assert "documents" in error("---\na: 1\n" * 50_001).message
    assert "bytes" in error(b"a" * ((32 << 20) + 1)).message


def test_json_alone_or_several_after_each_other() -> None:
    assert values('{"a": 1}', is_json=True) == [{"a": 1}]
    assert values('{"a": 1}\n{"b": 2}\n\n[3]', is_json=True) == [{"a": 1}, {"b": 2}, [3]]
    assert values(" \n", is_json=True) == []
    assert values('{"a": "\\ud83d\\ude00"}\n{}', is_json=True) == [{"a": "\N{GRINNING FACE}"}, {}]


@pytest.mark.parametrize(
    ("text", "line"), [('{"a": 1,\n "b": }', 2), ('{"a": 1}\n{"b"', 2), ("[" * 100_000, 1), ('{"a": ' + "9" * 5_000 + "}", 1),
     ('{"a": 1}\n{"b": "\\ud800"}', 2), ('{"\\udfff": 1}', 1)],
)  # fmt: skip
def test_bad_json_names_its_line(text: str, line: int) -> None:
    assert error(text, is_json=True).line == line


def test_json_in_a_yaml_file_is_yaml() -> None:
    assert values('{"a": "yes",\n "b": [1, true]}\n') == [{"a": "yes", "b": [1, True]}]


def test_a_field_is_found_in_its_file() -> None:
    text = (
        "a: 1\n---\n# a comment\nspec:\n  rules:\n  - host: x\n  - host: y\n"
        "    http:\n      paths: []\nmetadata: {annotations: {k/x.y: v}}\n"
    )
    document = read_documents(text.encode(), is_json=False)[1]

    assert line_of(document, "spec.rules[1].host") == 7
    assert line_of(document, "spec.rules[1].http.paths[0].path") == 9
    assert line_of(document, "metadata.annotations[k/x.y]") == 10
    assert line_of(document, "") == 4
