"""The trace of one change begins here: span `observed`, whose context travels with its delta, then span `published` under it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Final

from services.shared.contracts.objects import Key
from services.shared.telemetry import tracing

OWN_TRACE_UP_TO: Final = 16
"""So many objects changed at once have a trace each; more (a first list, a checkout) share one."""


class ChangeTrace:
    """One change on its way to the stream."""

    def __init__(self, name: str, observed_at: float, objects: int) -> None:
        self._attributes: dict[str, str | int | float | bool] = {"sluice.object": name, "sluice.objects": objects}
        self._seen_at = time.time()
        self.headers: Mapping[str, str] = {
            tracing.HEADER: tracing.record("observed", start=observed_at, end=self._seen_at, attributes=self._attributes)
        }

    def published(self, sequence: int) -> None:
        """Acknowledged: it is in the stream at or before `sequence`."""
        tracing.record(
            "published",
            start=self._seen_at,
            end=time.time(),
            parent=self.headers[tracing.HEADER],
            attributes={**self._attributes, "sluice.sequence": sequence},
        )


def traces(keys: Collection[Key], observed_at: float) -> dict[Key, ChangeTrace]:
    """A trace for each change, or one for all of them."""
    if len(keys) <= OWN_TRACE_UP_TO:
        return {key: ChangeTrace(str(key), observed_at, 1) for key in keys}
    return dict.fromkeys(keys, ChangeTrace("", observed_at, len(keys)))
