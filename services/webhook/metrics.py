"""Counters in Prometheus' text form. No label holds a byte of a request."""

from __future__ import annotations

from collections import Counter


class Metrics:
    def __init__(self) -> None:
        self.reviews: Counter[tuple[str, str]] = Counter()
        """(`allowed` or `denied`, by whom) -> count."""
        self.refused: Counter[int] = Counter()
        """HTTP status -> count: answered without a review."""
        self.last_seconds = 0.0

    def text(self, *, connections_cut: int, certificate_expires_at: float) -> str:
        lines = ["# TYPE sluice_webhook_reviews_total counter"]
        lines += [f'sluice_webhook_reviews_total{{result="{result}",by="{by}"}} {n}' for (result, by), n in sorted(self.reviews.items())]
        lines += ["# TYPE sluice_webhook_refused_total counter"]
        lines += [f'sluice_webhook_refused_total{{code="{code}"}} {n}' for code, n in sorted(self.refused.items())]
        lines += [
            "# TYPE sluice_webhook_connections_cut_total counter",
            f"sluice_webhook_connections_cut_total {connections_cut}",
            "# TYPE sluice_webhook_certificate_expiry_seconds gauge",
            f"sluice_webhook_certificate_expiry_seconds {certificate_expires_at:.0f}",
            "# TYPE nginx_ingress_controller_admission_roundtrip_duration gauge",
            f"nginx_ingress_controller_admission_roundtrip_duration {self.last_seconds:.6f}",
        ]
        return "\n".join(lines) + "\n"
