"""What each service may publish and hear: as little as it needs. Pure data; `docs/security.md` has it as a table."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from services.shared.contracts import subjects
from services.shared.contracts.subjects import bucket_subject, republished, token

Role = Literal["watcher", "compiler", "webhook", "command"]
ROLES: Final[tuple[Role, ...]] = ("watcher", "compiler", "webhook", "command")

NEWCOMER: Final = "edge"
"""The user that all nodes without a credential are."""

_API: Final = "$JS.API"


class Permissions(Struct, frozen=True, kw_only=True):
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False
    """Whether it may answer requests."""


def _bucket(name: str) -> str:
    return f"KV_{name}"


def _read(*streams: str) -> tuple[str, ...]:
    """Follow and read streams, through consumers of its own. A whole JWT must fit into one protocol line (4 KB): hence `*` for all."""
    out = []
    for stream in streams:
        out += [f"{_API}.CONSUMER.CREATE.{stream}.>", f"{_API}.CONSUMER.DELETE.{stream}.*"]
        out += [f"{_API}.DIRECT.GET.{stream}", f"{_API}.DIRECT.GET.{stream}.>"]
    return tuple(out)


_ENSURE: Final = tuple(f"{_API}.STREAM.{verb}.*" for verb in ("CREATE", "UPDATE", "INFO"))
"""Make the streams where they are missing; never delete one."""


def inbox(user: str) -> str:
    """Where one user's answers arrive; nobody else may listen there."""
    return f"_INBOX_{user}.>"


def of_service(role: Role) -> Permissions:
    if role == "watcher":
        return Permissions(
            publish=(
                *("cluster.v1.>", bucket_subject(subjects.WATCHERS_BUCKET, ">")),
                *_ENSURE,
                *_read(subjects.CLUSTER_STREAM, subjects.CONFIG_STREAM, subjects.APPLIED_STREAM),
                *_read(*map(_bucket, (subjects.VERDICTS_BUCKET, subjects.NODES_BUCKET, subjects.REVOKED_BUCKET, subjects.WATCHERS_BUCKET))),
            ),
            subscribe=(inbox(role), "ask.v1.watcher.>"),
            answers=True,
        )
    if role == "compiler":
        return Permissions(
            publish=(
                *("config.v1.>", "blob.v1.>", subjects.ASK_WATCHER_RESYNC),
                *(bucket_subject(b, ">") for b in (subjects.VERDICTS_BUCKET, subjects.KEYS_BUCKET, subjects.ROLLOUTS_BUCKET)),
                *_ENSURE,
                *_read("*"),
                f"{_API}.STREAM.PURGE.{subjects.BLOBS_STREAM}",
            ),
            subscribe=(inbox(role), "ask.v1.compiler.>"),
            answers=True,
        )
    if role == "webhook":
        return Permissions(publish=(f"{subjects.ASK_COMPILER_ADMIT}.*",), subscribe=(inbox(role),))
    return Permissions(
        publish=("ask.v1.>", bucket_subject(subjects.REVOKED_BUCKET, ">"), *_ENSURE, *_read("*")),
        subscribe=(inbox(role),),
    )


def of_node(node: str, group: str) -> Permissions:
    """One edge node: its own reports, its own keys, its group's versions and gate. No consumer, no stream, nobody else's subject."""
    return _of_node(token(node), token(group))


def of_any_node() -> Permissions:
    """The same as a template that servers fill in: a user called as the node's token, tagged `group:` and the group's."""
    return _of_node("{{name()}}", "{{tag(group)}}")


def of_newcomer() -> Permissions:
    """A node that has no credential yet: it may ask for one."""
    return Permissions(publish=(subjects.ASK_WATCHER_ENROL,), subscribe=(inbox(NEWCOMER),))


def _of_node(own: str, group: str) -> Permissions:
    """`own`, `group`: tokens."""
    gate = bucket_subject(subjects.ROLLOUTS_BUCKET, group)
    versions, keys = f"config.v1.{group}", bucket_subject(subjects.KEYS_BUCKET, f"{group}.{own}")
    return Permissions(
        publish=(
            f"applied.v1.{own}",
            bucket_subject(subjects.NODES_BUCKET, own),
            bucket_subject(subjects.IDENTITIES_BUCKET, own),
            *(f"{_API}.DIRECT.GET.{subjects.CONFIG_STREAM}", f"{_API}.DIRECT.GET.{subjects.CONFIG_STREAM}.{versions}"),
            f"{_API}.DIRECT.GET.{subjects.BLOBS_STREAM}.blob.v1.>",
            f"{_API}.DIRECT.GET.{_bucket(subjects.KEYS_BUCKET)}.{keys}",
            f"{_API}.DIRECT.GET.{_bucket(subjects.ROLLOUTS_BUCKET)}.{gate}",
        ),
        subscribe=(inbox(f"node_{own}"), republished(versions), republished(keys), republished(gate)),
    )


def user_of_node(node: str) -> str:
    """Its user name; no service has such a one."""
    return f"node_{token(node)}"
