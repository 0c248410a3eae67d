"""`make cluster`: an API server for hands-on work, in ./.cluster, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal

from tests.support.kube import KubeServer, tools
from tests.support.up import ROOT


async def _main() -> None:
    directory = ROOT / ".cluster"
    shutil.rmtree(directory, ignore_errors=True)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with KubeServer(directory) as kube:
        kubeconfig = kube.kubeconfig()
        print(f"export KUBECONFIG={kubeconfig} PATH={tools()}:$PATH")
        print(f"sluice up --kubeconfig {kubeconfig}        # Ctrl-C ends the cluster and forgets everything", flush=True)
        await stop.wait()


with contextlib.suppress(KeyboardInterrupt):
    asyncio.run(_main())
