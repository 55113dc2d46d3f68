"""Everything that a GPU is wanted for, step by step: parity, benches, tests, sanitizers, a report. ``make gpu-report``.

A step that fails or takes too long does not stop the others. Its output is kept, so that steps may be run in
several commands (``--steps parity,masking``, then the rest): the report is made of whatever there is.
Exit code 0: every step that was asked for went well, or its tool is not here; 1: one failed; 2: there is no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "gpu-report"


def find_package(folder: Path) -> None:
    """Let ``corrmask_fast`` be imported where it is not installed, without the root of the repository on the path.

    There packages that look for Hugging Face's `kernels` would find the folder of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "corrmask_fast"
    if not link.is_symlink():
        link.symlink_to(ROOT / "corrmask_fast", target_is_directory=True)
    sys.path.insert(0, str(folder))


if __name__ == "__main__":
    sys.path[0] = str(ROOT / "bench")
    find_package(KEPT / "path")

# ruff: noqa: E402
import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

from harness import records

from gpu import devices
from gpu.pages import write_report

BENCH, RESULTS = "bench/gpu/run.py", records.RESULTS / "gpu.csv"
LIMIT_S = 240  # of a step: a GPU is lent for minutes


class Step(NamedTuple):
    """A command, the seconds that it is expected to take on an H200 (an estimate) and those that it may take."""

    what: str
    command: tuple[str, ...]
    expected_s: int
    limit_s: int = LIMIT_S
    tool: str = ""  # without this program the step is left out
    environment: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default, never changed)


PARITY_TESTS = "tests/test_parity.py"  # these ask the oracle, which is plain Python and takes its time


def tests_on_a_gpu() -> tuple[str, ...]:
    """Return the test files that have something for a GPU: the others may need extras that are not here."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return tuple(str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8"))


PYTHON = sys.executable
# -P keeps the root of the repository off the path, as find_package does.
PYTEST = (PYTHON, "-P", "-m", "pytest", "-m", "gpu", "-q")
SPREAD = ("-n", "8") if importlib.util.find_spec("xdist") else ()
EXERCISE = (PYTHON, "bench/gpu/exercise.py")
MORE = os.environ.get("SANITIZER_OPTIONS", "").split()
SANITIZER = ("compute-sanitizer", *MORE, "--error-exitcode", "66", "--print-limit", "20", "--tool")
NCU = ("ncu", "--clock-control", "none", "--set", "full", "--kernel-name", "regex:corrmask", "--launch-count", "2")
# With its own allocator PyTorch asks for large pieces, inside which memcheck sees no overrun.
PLAIN_MEMORY = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def bench(what: str, cases: str, expected_s: int, rounds: int = 25) -> Step:
    """Return a step of the bench."""
    return Step(what, (PYTHON, BENCH, "--rounds", str(rounds), "--cases", *cases.split()), expected_s)


def sanitizer(tool: str, what: str, expected_s: int) -> Step:
    """Return a step of compute-sanitizer: two small batches for each kernel, which it slows down a hundred times."""
    return Step(f"{tool}: {what}", (*SANITIZER, tool, *EXERCISE, "--small"), expected_s, tool="compute-sanitizer",
                environment=PLAIN_MEMORY)  # fmt: skip


# What a GPU is wanted for most comes first: whatever is cut off was the least of it.
STEPS = {
    "parity": Step("every kernel compiled, and compared with the CPU", EXERCISE, 75),
    "masking": bench("masking beside the device's copy", "masking", 75),
    "graph": bench("a graph of 2 000 genes, stage by stage", "graph", 40),
    "atlas": bench("a graph of 25 000 genes, stage by stage", "atlas", 90),
    "training": bench("training steps", "training", 90, rounds=15),
    "strategies": bench("every strategy and option beside the copy", "strategies", 75),
    "counts": bench("counts to masked tokens, hidden values", "counts", 45),
    "profile": bench("kernels, their resources, parts", "profile", 45),
    "tests": Step(
        "tests marked gpu, without the oracle's", (*PYTEST, *sorted({*tests_on_a_gpu()} - {PARITY_TESTS})), 120
    ),
    "oracle": Step("tests of parity with the oracle", (*PYTEST, *SPREAD, PARITY_TESTS), 60 if SPREAD else 150),
    "memcheck": sanitizer("memcheck", "accesses outside memory", 90),
    "racecheck": sanitizer("racecheck", "races in shared memory", 150),
    "synccheck": sanitizer("synccheck", "barriers that not all threads reach", 60),
    "initcheck": sanitizer("initcheck", "memory that was never written", 90),
    "ncu": Step(
        "counters of Nsight Compute", (*NCU, PYTHON, BENCH, "--dry", "--cases", "launch"), 60, tool="ncu"
    ),
}  # fmt: skip
SMOKE = {
    "tests": STEPS["tests"],
    "bench": Step("the bench itself, tiny", (PYTHON, BENCH, "--smoke"), 60),
}


def command_of(step: Step, arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return a step's command: its rows go where the report goes; kernels are those that were asked for."""
    command = step.command
    if BENCH in command and not arguments.smoke:
        command += ("--results", str(arguments.out / RESULTS.name))
    if EXERCISE[1] in command and "--kernels" not in command and arguments.kernels:
        command += ("--kernels", arguments.kernels)
    return command


def run_step(name: str, step: Step, folder: Path) -> dict[str, object]:
    """Run a step within its time; keep what it printed and how it ended."""
    began, log = time.monotonic(), folder / f"{name}.log"
    outcome: dict[str, object] = {
        "step": name,
        "what": step.what,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if step.tool and not shutil.which(step.tool):
        outcome |= {"status": "left out", "why": f"{step.tool} is not on the PATH", "seconds": 0.0}
    else:
        print(f"== {name}: {step.what} (about {step.expected_s} s, at most {step.limit_s} s)", flush=True)
        path = os.pathsep.join(filter(None, (str(KEPT / "path"), os.environ.get("PYTHONPATH"))))
        environment = os.environ | step.environment | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as file:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code = process.wait(step.limit_s)
                why = "" if code == 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                why = f"took longer than {step.limit_s} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
        print("\n".join(text.splitlines()[-60:]), flush=True)
        outcome |= {"status": "failed" if why else "ok", "why": why, "seconds": round(time.monotonic() - began, 1)}
    (folder / f"{name}.json").write_text(json.dumps(outcome), encoding="utf-8")
    print(f"== {name}: {outcome['status']} {outcome['why']} ({outcome['seconds']} s)", flush=True)
    return outcome


def main() -> int:
    """Run what the arguments ask for; return the exit code."""
    arguments = _arguments()
    reason = devices.why_not()
    if reason and not arguments.smoke:
        minutes = sum(step.expected_s for step in STEPS.values()) // 60
        print(
            f"nothing can be run here: {reason}. With a GPU this takes about {minutes} minutes; "
            "--smoke tries on the CPU what can be tried there",
            file=sys.stderr,
        )
        return 2
    steps = SMOKE if arguments.smoke else STEPS
    folder = arguments.keep / "smoke" if arguments.smoke else arguments.keep
    for needed in (folder, arguments.out):
        needed.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        print("A smoke run: nothing is recorded." + f" ({reason})" * bool(reason))
    asked = arguments.steps or [*steps, "report"]
    to_run, outcomes, began = [name for name in steps if name in asked], [], time.monotonic()
    for number, name in enumerate(to_run):
        left = [steps[each] for each in to_run[number:]]
        print(
            f"\n{time.monotonic() - began:.0f} s so far; {len(left)} of {len(to_run)} steps to go, "
            f"about {sum(each.expected_s for each in left)} s (an estimate), at most "
            f"{sum(each.limit_s for each in left)} s",
            flush=True,
        )
        step = steps[name]._replace(command=command_of(steps[name], arguments))
        outcomes.append(run_step(name, step, folder))
    if "report" in asked:
        ended = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        ended.sort(key=lambda one: list(steps).index(one["step"]) if one["step"] in steps else len(steps))
        path = arguments.out / RESULTS.name
        rows = records.newest(records.read(path)) if path.exists() and not arguments.smoke else []
        for path in write_report(rows, ended, folder if arguments.smoke else arguments.out):
            print(f"written: {path}")
    failed = [str(one["step"]) for one in outcomes if one["status"] == "failed"]
    if failed:
        print(f"FAILED: {', '.join(failed)}; their output is in {folder}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    def steps(text: str) -> list[str]:
        asked = text.split(",")
        known = [*STEPS, "report"]
        if unknown := set(asked) - set(known):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: no such step; there are {', '.join(known)}"
            )
        return asked

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=steps, help=f"any of {','.join(STEPS)},report (default: all)")
    parser.add_argument("--kernels", help="files of kernels for parity and the sanitizers (default: all)")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, what can be tried there; records nothing")
    parser.add_argument("--keep", type=Path, default=KEPT, help="where each step's output is kept")
    resolved = lambda text: Path(text).resolve()  # noqa: E731 (steps run in the root of the repository)
    parser.add_argument("--out", type=resolved, default=RESULTS.parent, help="where rows and the report are written")
    return parser.parse_args()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the step that runs is ended too
    sys.exit(main())
