"""Small TCP and UDP servers that answer with their name and what they received; and a client of each."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def tcp_echo(name: str, address: str = "127.0.0.1") -> Iterator[int]:
    """Answers the first piece of each connection with `name:` and the piece, and closes it. Its port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen(100)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(10)
                        connection.sendall(f"{name}:".encode() + connection.recv(65536))
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):  # what is left unread would reset it
                            pass

        yield from _until_done(server, serve)


@contextlib.contextmanager
def udp_echo(name: str, answers: int = 1) -> Iterator[int]:
    """Answers each datagram, `answers` times. Its port."""
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, peer = server.recvfrom(65536)
                    if data == b"":  # the end
                        return
                    for _ in range(answers):
                        server.sendto(f"{name}:".encode() + data, peer)

        yield from _until_done(server, serve)


def _until_done(server: socket.socket, serve: object) -> Iterator[int]:
    thread = threading.Thread(target=serve, daemon=True)  # type: ignore[arg-type]
    thread.start()
    port: int = server.getsockname()[1]
    try:
        yield port
    finally:
        if server.type == socket.SOCK_DGRAM:
            with socket.socket(type=socket.SOCK_DGRAM) as last:
                last.sendto(b"", ("127.0.0.1", port))
        else:
            server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def ask_tcp(port: int, data: bytes = b"hi", host: str = "127.0.0.1") -> bytes:
    """What comes back until the connection is closed. Raises OSError: nobody listens."""
    with socket.create_connection((host, port), timeout=10) as connection:
        answer = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
            while piece := connection.recv(65536):
                answer += piece
        return answer


def ask_udp(port: int, data: bytes = b"hi", answers: int = 1, seconds: float = 2) -> list[bytes]:
    """Up to so many datagrams that come back."""
    out: list[bytes] = []
    with socket.socket(type=socket.SOCK_DGRAM) as client, contextlib.suppress(OSError):
        client.settimeout(seconds)
        client.connect(("127.0.0.1", port))
        client.send(data)
        while len(out) < answers:
            out.append(client.recv(65536))
    return out
