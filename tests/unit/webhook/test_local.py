"""What the webhook says without the compiler."""

from __future__ import annotations

from typing import Any

import pytest

from services.webhook.local import check_alone
from tests.support.reviews import ingress


def with_path(path: Any, path_type: str = "ImplementationSpecific") -> dict[str, Any]:
    obj = ingress()
    obj["spec"]["rules"][0]["http"]["paths"][0] |= {"path": path, "pathType": path_type}
    return obj


def with_host(host: Any) -> dict[str, Any]:
    obj = ingress()
    obj["spec"]["rules"][0]["host"] = host
    return obj


@pytest.mark.parametrize(
    "obj", [ingress(), with_host("*.shop.example"), with_path("/a(/|$)(.*)"), {**ingress(), "metadata": {"generateName": "x-"}}]
)
def test_ordinary_objects_pass(obj: dict[str, Any]) -> None:
    assert check_alone(obj).allowed


@pytest.mark.parametrize(
    "obj",
    [
        with_host("shop.example\n"),
        with_host('x"; return 200; #'),
        with_host("a b"),
        with_host("~^(.*)$"),
        with_path("/etc/passwd"),
        with_path("/x; content_by_lua_block {os.execute()}"),
        with_path(7),
        {},
        {"metadata": "x"},
        {"metadata": {"name": "x", "annotations": {"a": {}}}},
        {"metadata": {"name": "x"}, "spec": {"rules": "x"}},
    ],
)
def test_hostile_and_malformed_objects_do_not(obj: dict[str, Any]) -> None:
    answer = check_alone(obj)

    assert not answer.allowed
    assert all(" " <= c <= "~" for problem in answer.problems for c in problem.sentence())
