"""Differential fuzzers: ``python tests/fuzz anndata --files 20000 --seed 0``, and ``others`` in place of ``anndata``.

Exit code 1 if any file was read wrongly, ended in anything but InputError, crashed or hung; such files are kept.
``--only N`` runs file number N again.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
for place in (HERE.parent, HERE.parents[1]):  # this folder's modules, and the project of this checkout
    if str(place) not in sys.path:
        sys.path.insert(0, str(place))

from fuzz import harness
from fuzz.harness import BAD, FINE


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/fuzz", description=__doc__)
    parser.add_argument("what", choices=("anndata", "others"))
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", type=int, help="run this file number alone")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where bad files go (%(default)s)")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(options: argparse.Namespace) -> None:
    """Run every jobs-th file; print each verdict as a line of JSON, short enough for a pipe to take it whole."""
    os.environ["CORRMASK_NUM_THREADS"] = "1"
    if options.what == "anndata":
        from fuzz import anndata_files as module
    else:
        from fuzz import other_files as module
    strategy = module.plans()
    with tempfile.TemporaryDirectory(prefix="corrmask-fuzz-") as workspace:
        module.prepare(Path(workspace))
        gc.freeze()
        numbers = range(options.worker, options.files, options.jobs) if options.only is None else [options.only]
        for number in numbers:
            plan = harness.plan_of(strategy, options.seed, number)
            name = f"{options.what}-{options.seed}-{number}"
            *verdict, reason = harness.run_number(module, plan, name, Path(workspace), options.keep)
            say(json.dumps([number, *verdict, " ".join(reason.split())[-400:]]))


def table(rows: collections.Counter) -> str:
    """Verdicts counted by source."""
    seen = [v for v in (*FINE, *BAD) if any(verdict == v for verdict, _ in rows)]
    lines = [f"{'':25}" + "".join(f"{v[:14]:>15}" for v in seen)]
    names = sorted({source for _, source in rows})
    lines += [f"{name:25}" + "".join(f"{rows[v, name] or '':>15}" for v in seen) for name in names]
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    if options.worker is not None:
        work(options)
        return 0
    jobs = 1 if options.only is not None else options.jobs
    begin = said = time.monotonic()
    rows: collections.Counter = collections.Counter()
    command = [sys.executable, str(HERE), *sys.argv[1:], "--jobs", str(jobs)]
    reading, writing = os.pipe()
    workers = [subprocess.Popen([*command, "--worker", str(i)], stdout=writing) for i in range(jobs)]
    os.close(writing)
    with os.fdopen(reading) as lines:
        for line in lines:
            number, verdict, source, change, reason = json.loads(line)
            rows[verdict, source] += 1
            if verdict in BAD:
                say(f"{verdict}: file {number}, {source}; {change}: {reason}")
            if time.monotonic() - said > 5:
                said = time.monotonic()
                say(f"[{said - begin:.0f} s] {total(rows)}")
    failed = sum(worker.wait() != 0 for worker in workers)
    bad = sum(n for (verdict, _), n in rows.items() if verdict in BAD)
    say(f"\n{table(rows)}\n\n{total(rows)}")
    say(f"{time.monotonic() - begin:.0f} s; {bad} bad{f': see {options.keep}' if bad else ''}")
    if failed:
        say(f"{failed} workers ended before their time")
    return int(bool(bad or failed))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def total(rows: collections.Counter) -> str:
    counts = collections.Counter()
    for (verdict, _), n in rows.items():
        counts[verdict] += n
    return f"{counts.total()} files: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
