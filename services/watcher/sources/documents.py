"""The text of one manifest file in, its documents out, each with the line it begins at. Bounded before and while it is parsed.

The fast parser (`ryaml`, YAML 1.2) reads every file first. It refuses deep nesting (128), alias bombs and duplicate keys, so whatever
follows works on bounded input. Documents in which YAML 1.1 - what `kubectl` speaks - would read something else (`yes`, `0777`, `<<`, tags)
go to PyYAML with kubectl's own rules. PyYAML also finds the line of a field for messages.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct
from ryaml import InvalidYamlError, loads  # type: ignore[attr-defined] # pyright: ignore[reportPrivateImportUsage]

MAX_FILE_BYTES: Final = 32 << 20
"""A directory is an administrator's, but a runaway generator should not take the watcher with it."""
MAX_DOCUMENTS: Final = 50_000
"""In one file."""
MAX_DEPTH: Final = 128
MAX_NODES: Final = 500_000
"""Values in one document after aliases are followed (a legal Kubernetes object has at most 1.5 MiB of JSON)."""


class Unreadable(Exception):
    """The file as a whole cannot be used. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line
        self.message = message


class Document(Struct, frozen=True, kw_only=True):
    """One document of a file."""

    value: Any
    """As JSON would have it; a mapping in a good manifest. Mapping keys may still be numbers, booleans or None."""
    text: str
    line: int
    """The line of the file at which `text` begins."""
    yaml: bool = True


def read_documents(data: bytes, *, is_json: bool) -> list[Document]:
    """All documents of one file; empty ones are left out. Raises Unreadable."""
    if len(data) > MAX_FILE_BYTES:
        raise Unreadable(1, f"the file has {len(data)} bytes; at most {MAX_FILE_BYTES} are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(data.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from error
    documents = list(_json_documents(text) if is_json else _yaml_documents(text))
    if len(documents) > MAX_DOCUMENTS:
        raise Unreadable(documents[MAX_DOCUMENTS].line, f"more than {MAX_DOCUMENTS} documents in one file")
    return documents


# --- JSON


def _json_documents(text: str) -> Iterator[Document]:
    """One JSON value, or several after each other (kubectl reads both)."""
    if not text.strip():
        return
    try:
        yield Document(value=msgspec.json.decode(text), text=text, line=1, yaml=False)
        return
    except (msgspec.DecodeError, RecursionError):
        pass  # several values, or an error: the slow decoder tells, with the position
    at = 0
    while match := _JSON_START.search(text, at):
        line = text.count("\n", 0, match.start()) + 1
        try:
            value, end = _JSON_DECODER.raw_decode(text, match.start())
            json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise Unreadable(error.lineno, f"not JSON: {error.msg}") from error
        except UnicodeEncodeError as error:  # Python's decoder lets it pass; nothing could be sent anywhere
            raise Unreadable(line, "not JSON: half of a surrogate pair (`\\ud800`) is no character") from error
        except (RecursionError, ValueError) as error:
            raise Unreadable(line, "not JSON within bounds: nested too deeply, or a number too long") from error
        yield Document(value=value, text=text[match.start() : end], line=line, yaml=False)
        at = end


_JSON_START: Final = re.compile(r"\S")
_JSON_DECODER: Final = json.JSONDecoder()


# --- YAML


def _yaml_documents(text: str) -> Iterator[Document]:
    for line, chunk in _split(text):
        value = _load(chunk, line)
        if value is not None:
            yield Document(value=value, text=chunk, line=line)


def _split(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of each document. `---` at a line's start ends a document wherever it stands (YAML 1.2, c-forbidden)."""
    start, line = 0, 1
    for match in _SEPARATOR.finditer(text):
        chunk = text[start : match.start()]
        if chunk.strip() and not _DIRECTIVES.fullmatch(chunk):
            yield line, chunk
        line += text.count("\n", start, match.start())
        # The marker itself stays with its document: it may carry the first value on its own line.
        start = match.start()
    chunk = text[start:]
    if chunk.strip():
        yield line, chunk


_SEPARATOR: Final = re.compile(r"^---(?=\s|$)", re.MULTILINE)
_DIRECTIVES: Final = re.compile(r"(?:%[^\n]*\n|\s|#[^\n]*\n)*")


def _load(chunk: str, line: int) -> Any:
    try:
        value = loads(chunk)
    except (InvalidYamlError, ValueError) as error:
        raise _unreadable(chunk, line, str(error)) from error
    if not _may_be_another_dialect(chunk):
        return value
    try:
        value = yaml.load(chunk, Loader=_KubectlLoader)  # noqa: S506 - a SafeLoader
        _count_nodes(value, {})
    except yaml.MarkedYAMLError as error:
        raise Unreadable(line + _mark_line(error), error.problem or error.context or "not YAML") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Unreadable(line, f"not YAML: {error}") from error
    return value


def _unreadable(chunk: str, line: int, reason: str) -> Unreadable:
    """The fast parser's complaint, with the line in the file."""
    if duplicate := _DUPLICATE.search(reason):
        at = _line_of_duplicate(chunk, duplicate[1])
    elif found := _LINE.search(reason):
        at = int(found[1])
    else:
        at = _line_of_yaml_error(chunk)
    return Unreadable(line + at - 1, _LINE.sub("", reason).strip())


_LINE: Final = re.compile(r" ?at line (\d+) column \d+")
_DUPLICATE: Final = re.compile(r'duplicate entry with key "(.*?)"(?: at line|$)', re.DOTALL)


def _line_of_duplicate(chunk: str, key: str) -> int:
    """The line of the second `key` in one mapping. Works on events: the rest of the document may be nested without bounds."""
    seen: list[set[str] | None] = []  # one per open collection; None: a sequence
    expecting_key: list[bool] = []
    try:
        for event in yaml.parse(chunk, Loader=yaml.CSafeLoader):
            if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                seen.pop()
                expecting_key.pop()
                continue
            if seen and (keys := seen[-1]) is not None and isinstance(event, yaml.NodeEvent):
                if expecting_key[-1] and isinstance(event, yaml.ScalarEvent):
                    if event.value in keys and event.value == key:
                        return int(event.start_mark.line) + 1 if event.start_mark is not None else 1
                    keys.add(event.value)
                expecting_key[-1] = not expecting_key[-1]
            if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
                seen.append(set() if isinstance(event, yaml.MappingStartEvent) else None)
                expecting_key.append(True)
    except yaml.YAMLError:
        pass
    return 1


def _mark_line(error: yaml.MarkedYAMLError) -> int:
    """Where, counting lines from 0."""
    mark = error.problem_mark if error.problem_mark is not None else error.context_mark
    return mark.line if mark is not None else 0


def _line_of_yaml_error(chunk: str) -> int:
    try:
        for _ in yaml.parse(chunk, Loader=yaml.CSafeLoader):
            pass
    except yaml.MarkedYAMLError as error:
        return _mark_line(error) + 1
    except yaml.reader.ReaderError as error:
        return chunk.count("\n", 0, error.position) + 1
    return 1


def _may_be_another_dialect(chunk: str) -> bool:
    """May YAML 1.1 read this document differently? A false alarm costs 0.2 ms, nothing else."""
    return "<<" in chunk or _DIALECT.search("\n" + chunk) is not None  # merge keys; or a scalar or tag, each after one of a few characters


_DIALECT: Final = re.compile(
    r"""
    [\s\[{,:?-](?=[!yYnNoO+\-\d])                           # a set of characters first: `re` runs to the next of them at full speed
    (?: !                                                   # tags; plain scalars that 1.1 and 1.2 resolve differently
      | (?: [yYnN] | yes | Yes | YES | no | No | NO | on | On | ON | off | Off | OFF
      | [-+]?0[0-9_]+ | [-+]?0[bo][0-9_]+ | [-+]?[0-9][0-9_]*_[0-9_.]* )
      (?=\s*(?:$|[\]},:#])))
    """,
    re.VERBOSE | re.MULTILINE,
)


def _count_nodes(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many values `value` holds once aliases are written out. Raises ValueError beyond the bounds."""
    if not isinstance(value, dict | list):
        return 1
    if (count := known.get(id(value))) is not None:
        return count
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    children = value.values() if isinstance(value, dict) else value
    count = 1 + sum(_count_nodes(child, known, depth + 1) for child in children)
    if count > MAX_NODES:
        raise ValueError("too many values (aliases followed)")
    known[id(value)] = count
    return count


class _KubectlLoader(yaml.CSafeLoader):
    """YAML as sigs.k8s.io/yaml reads it: 1.1 booleans and octals, merge keys; timestamps and sexagesimals stay text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own name and shape


for _tag, _pattern, _first in (
    ("bool", r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0b[01_]+|0o[0-7_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+0123456789."),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _firsts = [c if c != "\0" else "" for c in _first]
    _KubectlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _firsts)


def _construct_bool(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> bool:
    return str(loader.construct_scalar(node)).lower() in {"y", "yes", "true", "on"}


_KubectlLoader.add_constructor("tag:yaml.org,2002:bool", _construct_bool)


# --- lines of fields


def line_of(document: Document, path: str) -> int:
    """The line in the file at which the field `path` (`spec.rules[0].host`) is written, or the nearest parent that is."""
    if not document.yaml or len(document.text) > _MAX_LOCATED:
        return document.line
    node = _compose(document.text)
    line = node.start_mark.line if node else 0
    for step in _STEP.finditer(path):
        key_line, node = _child(node, step)
        if node is None:
            break
        line = key_line
    return int(document.line + line)


@functools.lru_cache(maxsize=1)
def _compose(text: str) -> Any:
    """The document with its marks. A document with one problem often has more."""
    try:
        return yaml.compose(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError):
        return None


_MAX_LOCATED: Final = 1 << 20
"""Larger documents are named by the line at which they begin: finding a field takes a second for each 5 MB."""
_STEP: Final = re.compile(r"\[(\d+)\]|\[([^\]]*)\]|([^.\[\]]+)")


def _child(node: Any, step: re.Match[str]) -> tuple[int, Any]:
    """(line, node) of one step down; node is None where there is none."""
    if isinstance(node, yaml.SequenceNode) and step[1] is not None:
        index = int(step[1])
        return (node.value[index].start_mark.line, node.value[index]) if index < len(node.value) else (0, None)
    if isinstance(node, yaml.MappingNode):
        name = step[2] if step[2] is not None else step[3] or step[1]
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == name:
                return key.start_mark.line, value
    return 0, None
