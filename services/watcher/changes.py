"""What a source says: which objects are now different, and what it could not read."""

from __future__ import annotations

from msgspec import Struct

from services.shared.contracts.objects import AnyObject, Key

ObjectChanges = dict[Key, AnyObject | None]
"""The new state of each changed object; None: it is gone."""


class Changes(Struct, frozen=True, kw_only=True):
    """One look at the source."""

    objects: ObjectChanges = {}
    again_after_seconds: float = 0.0
    """Not 0: something was in the middle of a change (a file open for writing, a file just gone); look again after that time.
    The objects concerned keep their former state until then."""
