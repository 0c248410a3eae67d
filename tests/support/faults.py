"""Ways to make things fail: a TCP proxy that cuts and holds, a small disk, a clock that jumps, processes under strace."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import psutil

from tests.support.up import ROOT

# --- processes


class Service:
    """One service process (`sluice NAME ...`), with its output in a file. Start it again after it ended."""

    def __init__(self, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.log = log
        self._arguments = arguments
        self._environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.cli", *self._arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment},
            )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def process(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Its status, once it is there."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, 30)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.running:
            self.send(signal.SIGCONT)
            self.send(number)
            await self.ended()


class PeakMemory:
    """The most resident memory a process had while the block ran, in bytes, above what it had at its beginning."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = 0

    def __enter__(self) -> PeakMemory:
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # the kernel's own high-water mark begins again
        self._before = self._process.memory_info().rss
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    @property
    def growth(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        return peak * 1024 - self._before


@contextlib.contextmanager
def strace(pid: int, *options: str, output: Path | None = None) -> Iterator[None]:
    """Attached to all threads of a process while the block runs; without `-qq`, which would hide that it is."""
    command = ["strace", "-f", "-o", str(output or "/dev/null"), *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()  # "Process 1 attached"
        assert b"attached" in said, said
        try:
            yield
        finally:
            tracer.terminate()
            tracer.stderr.read()


# --- the network


class Proxy:
    """TCP between clients and a server, cut and healed without either end being told.

    `passes` sees what clients send before the server does, and says how many of the bytes may go; fewer than all: nothing goes any more.
    """

    def __init__(self, target: int, passes: Callable[[bytes], int] = len) -> None:
        self._target = target
        self._passes = passes
        self._open = asyncio.Event()
        self._open.set()
        self._deaf = False
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connections = 0
        """Accepted so far."""

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self._open.set()
        self._close()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """From now on nothing passes, in either direction, and what is sent is lost."""
        self._deaf = True

    def heal(self) -> None:
        """Connections from before are closed, as their ends would find out; new ones pass."""
        self._deaf = False
        self._close()

    def hold(self) -> None:
        """From now on what clients send waits; what the server sends does not."""
        self._open.clear()

    def release(self) -> None:
        """What waited goes on its way, late."""
        self._open.set()

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        pair = {writer, to_writer}
        self._writers |= pair
        await asyncio.gather(self._pump(reader, to_writer, self._passes), self._pump(to_reader, writer, None))
        self._writers -= pair

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Callable[[bytes], int] | None) -> None:
        try:
            while data := await reader.read(65536):
                count = len(data)
                if passes is not None:
                    count = passes(data)
                    await self._open.wait()
                if not self._deaf:
                    writer.write(data[:count])
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


# --- the disk


@contextlib.contextmanager
def disk_of(size: str) -> Iterator[Path]:
    """A file system of this size (as `mount` takes it)."""
    directory = Path(tempfile.mkdtemp(prefix="sluice-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        shutil.rmtree(directory, ignore_errors=True)


# --- the clock


class Clock:
    """The wall clock of processes started with `environment`; the monotonic one is left alone, as a real jump leaves it."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "faketime"
        self.jump(0)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": "libfaketime.so.1",
            "LD_LIBRARY_PATH": next(str(p) for p in Path("/usr/lib").glob("*/faketime")),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def jump(self, seconds: int) -> None:
        """So far from the true time, from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        fresh.replace(self._file)


# --- waiting


async def until(true: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def services(*several: Service) -> AsyncIterator[Sequence[Service]]:
    """Started; ended at the end."""
    for one in several:
        one.start()
    try:
        yield several
    finally:
        for one in several:
            await one.end()
