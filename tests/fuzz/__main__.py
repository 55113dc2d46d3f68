"""Differential fuzzers: ``python tests/fuzz anndata --files 20000 --seed 0``, and ``others`` in place of ``anndata``.

Exit code 1 if any file was read wrongly, ended in anything but InputError, crashed or hung; such files are kept.
``--only N`` runs file number N again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
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
    parser.add_argument("--only", type=int, help="run this file number alone, and keep it")
    parser.add_argument("--kind", help="only sources whose name begins so")
    parser.add_argument(
        "--keep", type=Path, default=Path("build/fuzz"), help="folder of bad files (default: %(default)s)"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def work(options: argparse.Namespace) -> None:
    """Run every jobs-th file; print each verdict as a line of JSON."""
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
            if options.kind and not module.source(plan).startswith(options.kind):
                continue
            name = f"{options.what}-{options.seed}-{number}"
            say(json.dumps([number, *harness.run_number(module, plan, name, Path(workspace), options.keep)]))


def table(rows: collections.Counter, which: int) -> str:
    """Verdicts counted by source (which=1) or change (which=2)."""
    seen = [v for v in (*FINE, *BAD) if any(key[0] == v for key in rows)]
    names = sorted({key[which] for key in rows})
    lines = [f"{'':42}" + "".join(f"{v[:14]:>15}" for v in seen)]
    for name in names:
        counts = [sum(n for key, n in rows.items() if key[0] == v and key[which] == name) for v in seen]
        lines.append(f"{name[:41]:42}" + "".join(f"{n or '':>15}" for n in counts))
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    if options.only is not None:
        options.jobs = 1
    if options.worker is not None:
        work(options)
        return 0
    begin, rows, lines = time.monotonic(), collections.Counter(), queue.Queue()
    command = [sys.executable, str(HERE), *sys.argv[1:], "--jobs", str(options.jobs), "--files", str(options.files)]
    workers = [subprocess.Popen([*command, "--worker", str(i)], stdout=subprocess.PIPE) for i in range(options.jobs)]
    readers = [threading.Thread(target=lambda w=w: [lines.put(line) for line in w.stdout]) for w in workers]
    for reader in readers:
        reader.start()
    said = begin
    while any(reader.is_alive() for reader in readers) or not lines.empty():
        with contextlib.suppress(queue.Empty):
            take(json.loads(lines.get(timeout=0.5)), rows)
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(f"[{said - begin:.0f} s] {total(rows)}")
    failed = [worker for worker in workers if worker.wait() != 0]
    bad = sum(n for key, n in rows.items() if key[0] in BAD)
    say(f"\n{table(rows, 1)}\n\n{table(rows, 2)}\n\n{total(rows)}")
    say(f"{time.monotonic() - begin:.0f} s; {bad} bad{f': see {options.keep}' if bad else ''}")
    if failed:
        say(f"{len(failed)} workers ended before their time")
    return int(bool(bad or failed))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def take(line: list, rows: collections.Counter) -> None:
    """Count one verdict; print it if it is bad."""
    number, verdict, source, change, reason = line
    rows[verdict, source, change] += 1
    if verdict in BAD:
        say(f"{verdict}: file {number}, {source}; {change}: {' '.join(reason.split())[-400:]}")


def total(rows: collections.Counter) -> str:
    counts = collections.Counter()
    for key, n in rows.items():
        counts[key[0]] += n
    return f"{sum(counts.values())} files: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
