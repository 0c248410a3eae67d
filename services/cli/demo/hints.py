"""Commands to try, with the ports of this run."""

from __future__ import annotations

from urllib.parse import urlsplit

from services.cli.state import Up


def hints(up: Up) -> str:
    http, https = (urlsplit(u).port for u in (up.nodes[0].http, up.nodes[0].https))
    return "\n".join(
        [
            "try:",
            f"  curl -k --resolve shop.example.com:{https}:127.0.0.1 https://shop.example.com:{https}/",
            f"  curl -k --resolve shop.example.com:{https}:127.0.0.1 -H 'X-Version: next' https://shop.example.com:{https}/",
            f"  curl -i -H 'Host: shop.example.com' http://127.0.0.1:{http}/     # 308 to https",
            f"  curl -H 'Host: api.example.com' 'http://127.0.0.1:{http}/api/items?page=2'",
            f"  curl -u demo:demo -H 'Host: members.example.com' http://127.0.0.1:{http}/",
            f"  curl -i -H 'Host: members.example.com' http://127.0.0.1:{http}/     # 401",
            f"  .venv/bin/python -m websockets ws://live.example.com:{http}/     # with live.example.com in /etc/hosts",
            f"edit the manifests in {up.manifests}, then: sluice wait, sluice status, sluice trace shop/shop",
        ]
    )
