"""`make bench`: all benchmarks, or those named: decoding, compiling, dataplane, whole. Prints a table, writes bench-results.json."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.compiling import compiling
from tests.bench.dataplane import dataplane
from tests.bench.decoding import decoding
from tests.bench.results import Benchmark, Result, show, write
from tests.bench.whole import whole

ALL: dict[str, Benchmark] = {"decoding": decoding, "dataplane": dataplane, "compiling": compiling, "whole": whole}


def main() -> None:
    names = sys.argv[1:] or list(ALL)
    results: list[Result] = []
    for name in names:
        print(f"measuring: {name}", flush=True)
        results += ALL[name]()
        write(results, Path("bench-results.json"))
    show(results)


if __name__ == "__main__":
    main()
