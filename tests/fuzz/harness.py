"""Runs each file in a child process with limits, and gives it a verdict.

A worker imports everything and compiles all kernels, then forks a child for each file. The child makes the file from a
plan, reads it with this project and then in the independent way; it reports after each of the three stages, so that
the worker knows who crashed or hung. A plan is drawn by Hypothesis from the seed and the file's number.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import re
import resource
import shutil
import signal
import traceback
import warnings
from functools import partial
from itertools import pairwise
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SECONDS = 10  # for making a file, and for our reading
THEIR_SECONDS = 5  # for the reference, which hangs on files that we refuse
MEMORY = 3 << 30  # bytes of address space on top of what the worker has
LONGEST_MESSAGE = 4000

# What ends a run with exit code 1; the others are fine.
BAD = ("WRONG", "exception", "crash", "hang", "refused a good file", "fuzzer")
FINE = ("equal", "InputError", "more lenient", "unclear", "reference crashes or hangs", "not made")


class Verdict(NamedTuple):
    """What came of one file: ``source`` and ``change`` are the rows and columns of the table."""

    verdict: str
    source: str
    change: str
    reason: str


class Refused(Exception):  # noqa: N818
    """The independent reader cannot make sense of a file: InputError is right, another result is not."""


class Unclear(Exception):  # noqa: N818
    """The independent reader cannot say what is right (beyond exact arithmetic, ambiguous names): both will do."""


class TheirFault(Exception):  # noqa: N818
    """The library that serves as the reference refuses the file; to read it is more lenient, not wrong."""


def plan_of(strategy: Any, seed: int, number: int) -> Any:
    """Draw the plan of file ``number``: the same for the same version of Hypothesis."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    found: list[Any] = []
    # Two examples: the first is always the least one, the second is drawn freely. Later ones would be its relatives.
    limits = settings(
        max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    number += seed * 1_000_000_007
    seeded(number)(limits(given(strategy)(lambda plan: found.append(plan))))()  # noqa: PLW0108 (it needs a signature)
    return found[-1] | {"seed": number}


def is_missing(value: Any) -> bool:
    try:
        return (
            value is None
            or type(value).__name__ in {"NAType", "NaTType"}
            or (isinstance(value, float) and isnan(value))
        )
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"  # pandas.NA has no truth value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    a, b = (x.item() if hasattr(x, "dtype") and not getattr(x, "ndim", 1) else x for x in (a, b))
    return is_missing(a) == is_missing(b) and (is_missing(a) or (isinstance(a, bool) == isinstance(b, bool) and a == b))


def difference(found: dict[str, Any], right: dict[str, Any]) -> str | None:
    """The first thing that is not as it should be, or None."""
    if more := set(found) ^ set(right):
        return f"{min(map(str, more))!r:.40} is in one of the two only"
    for name, expected in right.items():
        mine, why = found[name], None
        if isinstance(expected, dict) and isinstance(mine, dict):
            why = difference(mine, expected)
        elif isinstance(expected, list) and isinstance(mine, list) and len(mine) == len(expected):
            pairs = enumerate(zip(mine, expected, strict=True))
            why = next((f"number {i} is {a!r:.80}, right {b!r:.80}" for i, (a, b) in pairs if not same(a, b)), None)
        elif not same(mine, expected):
            why = f"{mine!r:.80}, right {expected!r:.80}"
        if why:
            return f"{name!s:.40}: {why}"
    return None


def impossible(value: dict[str, Any], genes: set[int]) -> str | None:
    """What cannot be right of cells or pairs of genes from a file of which the reference cannot tell, or None."""
    cells, indices = value.get("cells", []), value.get("indices", [])
    bounds = value.get("indptr", [0, len(indices)])
    if bounds[0] != 0 or sorted(bounds) != bounds or bounds[-1] != len(indices):
        return "pointers do not fit"
    for row in (*cells, *(sorted(indices[a:b]) for a, b in pairwise(bounds))):
        if len(set(row)) < len(row) or not set(row) <= genes:
            return f"a cell, or a gene's partners, are {row[:12]}"
    lost = [name for name, column in value.get("obs", {}).items() if len(column) != len(cells)]
    odd = [name for name in ("rho", "rho_global", "npmi", "counts") if not all(map(isfinite, value.get(name, [])))]
    return f"{[*lost, *odd][0]!r:.40} has another length, or values that are not finite" if lost or odd else None


def in_child(task: Any, folder: Path, seconds: float) -> tuple[dict[str, Any], str]:
    """Run ``task(say)`` in a child; return what it said by stage, and how it ended: "done", "hang" or a signal."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        reader.close()
        _be_the_child(task, folder, writer)
    writer.close()
    said, end = {}, "done"
    with contextlib.suppress(EOFError, OSError), reader:  # the child ended
        while end == "done":
            if reader.poll(seconds):
                stage, value = reader.recv()
                said[stage], seconds = value, THEIR_SECONDS if stage == "ours" else SECONDS
            else:
                os.kill(child, signal.SIGKILL)
                end = "hang"
    status = os.waitpid(child, 0)[1]
    if end == "done" and status != 0:
        code = os.waitstatus_to_exitcode(status)
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return said, end


def _be_the_child(task: Any, folder: Path, writer: Any) -> None:
    code = 1
    try:
        log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        warnings.simplefilter("ignore")
        faulthandler.enable()
        task(lambda stage, value: writer.send((stage, value)))
        code = 0
    except BaseException:  # noqa: BLE001 (a child of a worker must never return into it)
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(code)


def attempt(function: Any, *arguments: Any) -> tuple[str, Any]:
    """Return ("value", …), ("InputError", message) or ("exception", where it came from)."""
    from corrmask_fast import InputError

    try:
        return "value", function(*arguments)
    except InputError as error:
        return "InputError", str(error)
    except Exception as error:  # noqa: BLE001 (any other is what we are looking for)
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "corrmask_fast" in frame.filename or "kernels" in frame.filename]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-2:]))
        return "exception", f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"


def judged(module: Any, plan: Any, folder: Path, ours: tuple[str, Any]) -> tuple[str, str]:
    """Compare with the independent reading: return a verdict and a reason.

    A damaged chunk that unpacks to fewer bytes leaves the rest as memory was: what is read differs from time to time.
    """
    verdict = _judged(module, plan, folder, ours)
    if verdict[0] == "WRONG" and plan["change"] == "bytes":
        readings = [_reading(module, plan, folder) for _ in range(5)]
        if any(reading != readings[0] for reading in readings):
            return "unclear", "the reference reads something else each time"
    return verdict


def _reading(module: Any, plan: Any, folder: Path) -> Any:
    junk = np.random.default_rng().random(100_000).tobytes()  # so that freed memory is never the same
    del junk
    try:
        return repr(module.right(plan, folder))
    except Exception as error:  # noqa: BLE001
        return repr(error)


def _judged(module: Any, plan: Any, folder: Path, ours: tuple[str, Any]) -> tuple[str, str]:
    kind, value = ours
    try:
        right = module.right(plan, folder)
    except Refused as error:
        return ("InputError", "") if kind != "value" else ("WRONG", f"read, but must be refused: {error}")
    except (Unclear, TheirFault) as error:
        if kind != "value":
            return "InputError", ""
        if why := impossible(value, module.genes(plan, value)):
            return "WRONG", f"{why} (and of the file: {error})"
        return "more lenient" if isinstance(error, TheirFault) else "unclear", str(error)
    except Exception:  # noqa: BLE001
        return "fuzzer", traceback.format_exc()[-1500:]
    if kind != "value":
        return ("InputError", "") if plan["change"] != "none" else ("refused a good file", str(value))
    why = difference(value, right)
    return ("WRONG", why) if why else ("equal", "")


def run_file(module: Any, plan: Any, folder: Path) -> Verdict:
    """Make the file of a plan, read it twice, and say what came of it."""
    source = module.source(plan)

    def all_stages(say: Any) -> None:
        say("made", module.make(plan, folder))
        opened = attempt(module.given, plan, folder)
        say("given", opened[0])
        ours = attempt(module.ours, plan, folder, opened[1]) if opened[0] == "value" else opened
        say("ours", ours)
        say("judged", judged(module, plan, folder, ours))

    said, end = in_child(all_stages, folder, SECONDS)
    change = said.get("made", plan["change"])
    if "made" not in said:
        return Verdict("not made", source, change, end)
    if "given" not in said:
        return Verdict("reference crashes or hangs", source, change, f"{end}; before we were called")
    ours = said.get("ours", ("nothing", end))
    if "judged" not in said:
        again, their_end = {}, end
        if "ours" not in said or end != "hang":  # whose fault was it? In a process of its own, the reference shows
            task = partial(judged, module, plan, folder, ours)
            again, their_end = in_child(lambda say: say("judged", task()), folder, THEIR_SECONDS)
        if "judged" not in again:
            apart = "exception" if ours[0] == "exception" else "reference crashes or hangs"
            return Verdict(apart, source, change, f"{their_end}; we: {ours[0]} {str(ours[1])[:200]}")
        why = "after reading: memory was damaged" if "ours" in said else _last_words(folder)
        return Verdict("hang" if end == "hang" else "crash", source, change, f"{end}; {why}")
    kind, value = ours
    if kind == "exception":
        return Verdict("exception", source, change, value)
    if kind == "InputError":
        if len(value) > LONGEST_MESSAGE or "\n" in value.strip():
            return Verdict("WRONG", source, change, f"a message of {len(value)} characters: {value[:300]}")
        if left := [path.name for path in (folder / "out").iterdir()]:
            return Verdict("WRONG", source, change, f"refused, but left {left} behind: {value[:300]}")
    return Verdict(said["judged"][0], source, change, said["judged"][1])


def _last_words(folder: Path) -> str:
    """Where the interpreter was when a signal came, as faulthandler says; else the end of what was printed."""
    words = (folder / "output.txt").read_text(errors="replace")
    frames = re.findall(r'File ".*?([^/]+\.py)", line (\d+)', words)
    return " < ".join(f"{name}:{line}" for name, line in frames[:4]) or " ".join(words.split())[-300:]


def run_number(module: Any, plan: Any, name: str, workspace: Path, keep: Path) -> Verdict:
    """Run one file in a folder of its own; a bad one is kept in ``keep``, with the reason and the plan."""
    folder = workspace / name
    (folder / "out").mkdir(parents=True)
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    found = run_file(module, plan, folder)
    if found.verdict in BAD:
        (folder / "reason.txt").write_text(f"{found.verdict}: {found.reason}\n{found.source}; {found.change}\n{plan}\n")
        kept = keep / name
        shutil.rmtree(kept, ignore_errors=True)
        keep.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, kept)
    shutil.rmtree(folder, ignore_errors=True)
    return found
