"""The `stream` policy: a listener for each TCP and UDP service. Nothing of a ConfigMap's entry is in it but ports and flags."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from services.compiler.ir import Stream
from services.compiler.render import render
from services.compiler.settings import GlobalSettings
from services.shared.nginxtext import arguments as arg
from services.shared.nginxtext.arguments import Argument


class _Server(Struct, frozen=True):
    port: Argument
    file: Argument
    """Of its endpoints, on the node."""
    udp: bool
    decode: bool
    encode: bool


def stream_text(streams: Iterable[Stream], s: GlobalSettings) -> str:
    """The inside of `stream { }`, but for what is the node's own."""
    servers = [
        _Server(
            port=arg.Number(stream.port, low=1, high=65535),
            file=arg.Name(f"{stream.protocol}_{stream.port}"),
            udp=stream.protocol == "udp",
            decode=stream.decode,
            encode=stream.encode,
        )
        for stream in streams
    ]
    view = {
        "log_format": arg.StreamLogFormat(s.log_format_stream),
        "access_log": not (s.disable_access_log or s.disable_stream_access_log),
        "timeout": arg.Duration(s.proxy_stream_timeout),
        "responses": arg.Number(s.proxy_stream_responses),
        "real_ip_from": [arg.Cidr(c) for c in s.proxy_real_ip_cidr] if s.enable_real_ip else [],
    }
    return render("stream.conf.j2", s=view, servers=servers)
