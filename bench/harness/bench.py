"""One run of a bench: options, races, rows; at the end goals and conditions are printed, and rows go to one CSV."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.goals import table
from harness.records import PACKAGES, RESULTS, ROOT, Row, append, check_columns, conditions, conditions_text, rows_of
from harness.timing import Timing, race

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.goals import Goal
    from harness.timing import Contestant


def parser_of(doc: str, results: str, cases: Sequence[str], rounds: int | None = None) -> argparse.ArgumentParser:
    """Return the options that all benches have; ``rounds``: the default, None for a bench that has none."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, help="default: all")
    if rounds is not None:
        text = "samples of each contestant (default: %(default)s)"
        parser.add_argument("--rounds", type=int, default=rounds, help=text)
    parser.add_argument("--dry", action="store_true", help="print, but record nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run, and agree?")
    parser.add_argument("--results", type=Path, default=RESULTS / results, help="the CSV that rows are appended to")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "bench", help="where made-up cells are kept")
    return parser


class Bench:
    """The rows of a run, and what they have in common.

    Parameters
    ----------
    arguments
        Of :func:`parser_of`.
    goals, floors
        What the rows are judged by at the end; contestants that nothing can beat.
    described
        Columns that describe the input; they stand in every row.
    how
        How it was measured, as the conditions begin.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        goals: Sequence[Goal],
        described: Row,
        *,
        floors: Sequence[str] = (),
        packages: Sequence[str] = PACKAGES,
        how: str = "Medians of {rounds} rounds in turns",
    ) -> None:
        self.smoke, self.dry, self.path = arguments.smoke, arguments.dry, arguments.results
        self.goals, self.floors, self.how = goals, floors, how
        self.rounds = 3 if self.smoke else getattr(arguments, "rounds", 1)
        self.shared = conditions(self.rounds, described, packages)
        self.rows: list[Row] = []
        self.recorded = 0

    def race(
        self,
        case: str,
        batch: int,
        contestants: Sequence[Contestant],
        *,
        rounds: int = 0,
        more: Row | None = None,
        **how: Any,
    ) -> dict[str, Timing]:
        """Time contestants in turns (``how``: see :func:`race`), and keep a row for each."""
        rounds = rounds or self.rounds
        timings = race(contestants, rounds=rounds, **how)
        threads = {one.name: one.threads for one in contestants}
        self.keep(case, batch, timings, threads, {**(more or {}), **self.shared, "rounds": rounds})
        return timings

    def keep(self, case: str, batch: int, timings: dict[str, Timing], threads: dict[str, int], more: Row) -> None:
        """Keep a row for each timing; ``more``: its other columns."""
        self.rows += rows_of(case, batch, timings, threads, more)
        print(f"{case}, batch {batch:,}: checked and timed", flush=True)

    def record(self) -> None:
        """Append the rows since the last call; a smoke run and a dry one only check that they could be."""
        rows, self.recorded = self.rows[self.recorded :], len(self.rows)
        (check_columns if self.smoke or self.dry or not rows else append)(rows, self.path)

    def finish(self) -> None:
        """Print goals and conditions, and record."""
        if self.rows:
            how = self.how.format(**self.rows[0])
            goals = f"\n{table(self.rows, self.goals, self.floors)}\n" if self.goals else ""
            print(f"{goals}\n{conditions_text(self.rows[0], how)}")
        self.record()
        if self.smoke:
            print("\nA smoke run: nothing is recorded, and the figures mean nothing.")
        elif not self.dry:
            print(f"\n{len(self.rows)} rows appended to {self.path}")
