"""One API server for all tests of this folder; a namespace for each."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from services.shared.kube.client import Api
from tests.support.kube import KubeServer

_count = itertools.count(1)


@pytest.fixture(scope="session")
def kube(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeServer]:
    server = KubeServer(tmp_path_factory.mktemp("kube"))
    asyncio.run(server.__aenter__())
    try:
        yield server
    finally:
        asyncio.run(server.__aexit__())


@pytest.fixture
async def api(kube: KubeServer) -> AsyncIterator[Api]:
    """As the administrator."""
    made = await kube.api()
    yield made
    await made.close()


@pytest.fixture
async def namespace(api: Api) -> AsyncIterator[str]:
    name = f"test-{next(_count)}"
    await api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    yield name
    await api.request("DELETE", f"/api/v1/namespaces/{name}")
