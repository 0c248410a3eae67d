"""`make cluster`: an API server for hands-on work, until Ctrl-C.

It begins empty, in ./.cluster; in a directory given it goes on with what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from pathlib import Path

from tests.support.kube import KubeServer, tools
from tests.support.up import ROOT


async def _main(directory: Path) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # also while it starts
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with KubeServer(directory) as kube:
        kubeconfig = kube.kubeconfig()
        print(f"export KUBECONFIG={kubeconfig} PATH={tools()}:$PATH")
        print(f"sluice up --kubeconfig {kubeconfig}        # Ctrl-C ends the cluster", flush=True)
        await asyncio.Event().wait()


if sys.argv[1:]:
    place = Path(sys.argv[1]).resolve()
else:
    place = ROOT / ".cluster"
    shutil.rmtree(place, ignore_errors=True)
with contextlib.suppress(asyncio.CancelledError):
    asyncio.run(_main(place))
