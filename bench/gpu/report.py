"""Everything that a GPU is wanted for, step by step: tests, sanitizers, benches, then a report. ``make gpu-report``.

A step that fails or takes too long does not stop the others. Its output is kept, so that steps may be run in
several commands (``--steps tests,memcheck``, then the rest): the report is made of whatever there is.
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


class Step(NamedTuple):
    """A command, the seconds that it is expected to take on an H200 (an estimate) and those that it may take."""

    what: str
    command: tuple[str, ...]
    expected_s: int
    limit_s: int
    tool: str = ""  # without this program the step is left out
    environment: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default, never changed)


def tests_on_a_gpu() -> tuple[str, ...]:
    """Return the test files that have something for a GPU: the others may need extras that are not here."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return tuple(str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text(encoding="utf-8"))


# With its own allocator PyTorch asks for large pieces, inside which memcheck sees no overrun.
PLAIN_MEMORY = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
PYTHON = sys.executable
EXERCISE = (PYTHON, "bench/gpu/exercise.py")
MORE = os.environ.get("SANITIZER_OPTIONS", "").split()  # such as a filter of kernels, where it takes too long
SANITIZER = ("compute-sanitizer", *MORE, "--error-exitcode", "66", "--print-limit", "20", "--tool")
NCU = ("ncu", "--clock-control", "none", "--set", "full", "--kernel-name", "regex:corrmask", "--launch-count", "4")
# -P keeps the root of the repository off the path, as find_package does.
STEPS = {
    "tests": Step("tests marked gpu", (PYTHON, "-P", "-m", "pytest", "-m", "gpu", "-q", *tests_on_a_gpu()), 150, 480),
    "memcheck": Step("memcheck", (*SANITIZER, "memcheck", *EXERCISE), 90, 420, SANITIZER[0], PLAIN_MEMORY),
    "racecheck": Step("racecheck", (*SANITIZER, "racecheck", *EXERCISE), 180, 540, SANITIZER[0], PLAIN_MEMORY),
    "masking": Step("masking, parity and times", (PYTHON, BENCH, "--cases", "masking"), 90, 300),
    "graph": Step("graphs, stage by stage", (PYTHON, BENCH, "--cases", "graph"), 90, 420),
    "training": Step("training steps", (PYTHON, BENCH, "--cases", "training"), 90, 300),
    "profile": Step("kernels, their resources, parts", (PYTHON, BENCH, "--cases", "profile"), 45, 240),
    "ncu": Step(
        "counters of Nsight Compute",
        (*NCU, *EXERCISE, "--only", "masking"),
        90,
        300,
        "ncu",
    ),
}
SMOKE = {
    "tests": STEPS["tests"],
    "bench": Step("the bench itself, tiny", (PYTHON, BENCH, "--smoke"), 20, 120),
}


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
        print(f"\n== {name}: {step.what} (about {step.expected_s} s, at most {step.limit_s} s)", flush=True)
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
        print("\n".join(text.splitlines()[-40:]), flush=True)
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
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        print("A smoke run: nothing is recorded." + f" ({reason})" * bool(reason))
    asked = arguments.steps or [*steps, "report"]
    outcomes = [run_step(name, steps[name], folder) for name in steps if name in asked]
    if "report" in asked:
        ended = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        ended.sort(key=lambda one: list(steps).index(one["step"]) if one["step"] in steps else len(steps))
        rows = records.newest(records.read(RESULTS)) if RESULTS.exists() and not arguments.smoke else []
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
    parser.add_argument("--smoke", action="store_true", help="on the CPU, what can be tried there; records nothing")
    parser.add_argument("--keep", type=Path, default=KEPT, help="where each step's output is kept")
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="where the report is written")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
