"""What the experiments of the paper share: their options, their files, and the line that says what came out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.tables import write_csv

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).resolve().parents[1] / "results" / "paper"


def options(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="smaller, in seconds: to see that it runs, not for figures"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="for table and picture")
    return parser


def save_table(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])


def conclude(paper_says: str, we_get: str, *files: Path) -> None:
    print(f"paper says: {paper_says}")
    print(f"we get:     {we_get}")
    print("written to", ", ".join(map(str, files)))
