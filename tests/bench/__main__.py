"""`make bench`: all benchmarks, or those named: decoding, compiling, dataplane, whole, cluster, fleet, fleet3. Prints a table, writes bench-results.json.

Options after the names go to all of them: `python -m tests.bench fleet --nodes 50` (`--help` shows them; the first four have none).
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from tests.bench.cluster import cluster
from tests.bench.compiling import compiling
from tests.bench.dataplane import dataplane
from tests.bench.decoding import decoding
from tests.bench.fleet import fleet, fleet3
from tests.bench.results import Benchmark, Result, show, write
from tests.bench.whole import whole

ALL: dict[str, Benchmark] = {"decoding": decoding, "dataplane": dataplane, "compiling": compiling, "whole": whole}
SIZED = {"cluster": cluster, "fleet": fleet, "fleet3": fleet3}
"""These take options."""


def main() -> None:
    named = list(itertools.takewhile(lambda a: not a.startswith("-"), sys.argv[1:]))
    options = sys.argv[1 + len(named) :]
    results: list[Result] = []
    for name in named or [*ALL, *SIZED]:
        print(f"measuring: {name}", flush=True)
        results += SIZED[name](options) if name in SIZED else ALL[name]()
        write(results, Path("bench-results.json"))
    show(results)


if __name__ == "__main__":
    main()
