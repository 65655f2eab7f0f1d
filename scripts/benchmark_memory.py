"""What a long stream holds in memory: rows of a Parquet file left on the disk, against the same rows in memory.

Writes docs/benchmarks/memory.json and renders docs/BENCHMARKS.md. On an otherwise idle machine::

    python scripts/benchmark_memory.py                              # some 15 minutes, 1 GB of disk, 6 GB of memory
    python scripts/benchmark_memory.py --quick --out /tmp/try.json  # a look: a hundredth of the rows; no page

Rows of 12 float32 features and one of 10 labels, whose classes move slowly, arrive 1,000 at a time in the order of the
file. Each is predicted, then learned by streaming LDA. Every run is a process of its own, which tells its peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from benchmark import ROOT, publish, say

RESULT = ROOT / "docs/benchmarks/memory.json"
ROWS, FEATURES, CLASSES, GROUP, ARRIVAL, CACHE_MB = 10_000_000, 12, 10, 65_536, 1_000, 32
CASES = (  # share of the rows, resident, workers
    (0.1, False, 0), (0.1, False, 1), (0.1, False, 2), (0.1, True, 0),
    (1.0, False, 1), (1.0, True, 0),
)  # fmt: skip
RUN = """
import hashlib, json, resource, sys
import continual
done = continual.run(*sys.argv[1:])
measured = [(r.rows_seen, r.metric, r.value) for r in done.records if r.metric != "seconds"]
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    "records": hashlib.sha256(repr(measured).encode()).hexdigest(),
    "accuracy": done.metrics["prequential_accuracy"],
    "seconds": next(r.value for r in done.records if r.metric == "seconds"),
}))
"""
IMPORTS = """
import resource, sys
import numpy, pyarrow.parquet, sklearn, torch, continual
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def write(path: Path, rows: int) -> None:
    """A table of ``rows`` rows, written a row group at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    draws = np.random.default_rng(0)
    centres, drift = draws.normal(size=(2, CLASSES, FEATURES)).astype(np.float32)
    names = [f"f{i}" for i in range(FEATURES)]
    schema = pa.schema([*((name, pa.float32()) for name in names), ("y", pa.int8())])
    with parquet.ParquetWriter(path, schema) as file:
        for first, end in pairwise([*range(0, rows, GROUP), rows]):
            y = draws.integers(CLASSES, size=end - first, dtype=np.int8)
            x = centres[y] + drift[y] * np.float32(first / rows) + draws.normal(size=(len(y), FEATURES))
            columns = [*x.astype(np.float32).T, y]
            file.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema), GROUP)


def run(path: Path, runs: Path, resident: bool, workers: int) -> dict[str, Any]:
    source = {
        "path": path, "label": "y", "test_fraction": 0, "resident": resident, "workers": workers, "cache_mb": CACHE_MB,
    }  # fmt: skip
    options = [
        "scenario=prequential", "scenario/source=table", *(f"scenario.source.{key}={v}" for key, v in source.items()),
        f"scenario.arrival_rows={ARRIVAL}", "learner=slda", f"learner.batch_size={ARRIVAL}", "probe.prequential=true",
        "probe.window=10000", "track=none", f"output={runs}",
    ]  # fmt: skip
    result: dict[str, Any] = json.loads(call(RUN, *options))
    return result


def call(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def measure(folder: Path, rows: int) -> dict[str, Any]:
    """Peak and records of every case; the records of a table must not depend on how it is read."""
    runs, files = [], {share: folder / f"{share}.parquet" for share in sorted({case[0] for case in CASES})}
    for share, path in files.items():
        write(path, round(rows * share))
    for number, (share, resident, workers) in enumerate(CASES):
        own = run(files[share], folder / str(number), resident, workers)
        runs.append({"rows": round(rows * share), "resident": resident, "workers": workers, **own})
        say(str(runs[-1]))
    return {
        "features": FEATURES,
        "arrival_rows": ARRIVAL,
        "group_rows": GROUP,
        "cache_mb": CACHE_MB,
        "imports_bytes": int(call(IMPORTS)),
        "file_bytes": {str(round(rows * share)): path.stat().st_size for share, path in files.items()},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the rows")
    parser.add_argument("--out", type=Path, default=RESULT, help="the result file")
    arguments = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1"})
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), ROWS // 100 if arguments.quick else ROWS)
    publish("memory", results, arguments.out)


if __name__ == "__main__":
    main()
