"""The chart as it renders for the values files of `values/`, and for its example."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chart.helm import CHART, HERE, Object, objects, render_text

FILES = {file.stem: file for file in [*sorted((HERE / "values").glob("*.yaml")), CHART / "examples" / "edge-nodes.yaml"]}
_rendered: dict[str, str] = {}


@pytest.fixture(params=sorted(FILES))
def values_file(request: pytest.FixtureRequest) -> Path:
    """One values file after another."""
    return FILES[request.param]


@pytest.fixture
def rendered(values_file: Path) -> list[Object]:
    """What the chart makes of it; rendered once."""
    if values_file.stem not in _rendered:
        _rendered[values_file.stem] = render_text(None, values_file)
    return objects(_rendered[values_file.stem])
