"""A corpus of many inputs as a ``datasets`` folder with a part for each, made in any order, by any number of processes.

    OUT.parts/    while parts are missing                        OUT/    when all are there: renamed
      plan.json     inputs and options that the parts are of       part-00000.arrow …
      medians.json  of all inputs, if they were not given          vocabulary.json  medians.json
      part-00000.arrow, part-00000.json                            state.json  dataset_info.json

A part is written under another name and renamed, then its report beside it: it is done when that is there. Whoever
finds that all are done makes a corpus of the folder; doing that twice does no harm.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cells.corpus_io import VOCABULARY_FILE, FolderSink, describe_folder
from corrmask_fast.errors import InputError, check_integer, readable, shown
from corrmask_fast.files import atomic_file, check_output_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from corrmask_fast.cells.vocabulary import Vocabulary

PLAN, MEDIANS = "plan.json", "medians.json"


def check_shard(shard: tuple[int, int] | None) -> tuple[int, int]:
    """Return (k, n), the k-th of n shares of the inputs, from 1; None: all of them."""
    if shard is None:
        return 1, 1
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise InputError(f"shard must be (k, n), the k-th of n; got {shown(shard)}")
    n = check_integer("the number of shards", shard[1], 1)
    return check_integer("shard", shard[0], 1, n), n


class CorpusParts:
    """The folder of parts of a corpus at ``output``; ``plan`` are plain values that all parts must have in common."""

    def __init__(self, output: str | os.PathLike[str], plan: dict[str, Any], n_parts: int) -> None:
        self.output = check_output_folder(output, new=True)
        self.folder = self.output.with_name(f"{self.output.name}.parts")
        self.n_parts = n_parts
        self._plan = json.loads(json.dumps(plan, default=str))
        check_output_folder(self.folder)

    def begin(self) -> None:
        """Make the folder, or go on in one of the same plan; parts of another are refused."""
        file = self.folder / PLAN
        if file.is_file():
            with readable(file, "plan"):
                there = json.loads(file.read_text())
            if there != self._plan:
                differ = sorted(
                    key for key in self._plan if not isinstance(there, dict) or there.get(key) != self._plan[key]
                )
                raise InputError(
                    f"{self.folder} holds parts of another run (it differs in: {', '.join(differ)}); remove that "
                    "folder, or choose another output"
                )
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(
                f"{self.folder} exists and holds no parts of a corpus; remove it, or choose another output"
            )
        self.folder.mkdir(exist_ok=True)
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(self._plan))

    def forget(self, *, everything: bool = False) -> None:
        """Remove the folder after a failure, if there is nothing in it that another call could go on with."""
        if everything or (not any(self.folder.glob("part-*.json")) and not (self.folder / MEDIANS).exists()):
            shutil.rmtree(self.folder, ignore_errors=True)

    def medians(self) -> dict[str, float] | None:
        """Return the medians that an earlier run found, None if there are none yet."""
        file = self.folder / MEDIANS
        if not file.is_file():
            return None
        with readable(file, "medians"):
            return json.loads(file.read_text())

    def keep_medians(self, medians: dict[str, float]) -> None:
        """Keep the medians for the other parts, and beside the corpus."""
        with atomic_file(self.folder / MEDIANS) as temporary:
            temporary.write_text(json.dumps(medians))

    def is_done(self, number: int) -> bool:
        """Whether a part was written."""
        return self._report(number).is_file()

    def n_missing(self) -> int:
        """Return how many parts are not written yet."""
        return sum(not self.is_done(number) for number in range(self.n_parts))

    @contextlib.contextmanager
    def part(self, number: int, vocabulary: Vocabulary) -> Iterator[FolderSink]:
        """Give what writes a part; it counts when :meth:`finish_part` is told of it."""
        with atomic_file(self.folder / _file_of(number)) as temporary:
            sink = FolderSink(temporary, vocabulary)
            try:
                yield sink
            finally:
                sink.close()

    def finish_part(self, number: int, report: dict[str, Any]) -> None:
        """Write the report of a part: it is done."""
        with atomic_file(self._report(number)) as temporary:
            temporary.write_text(json.dumps(report))

    def reports(self) -> list[dict[str, Any]]:
        """Return the reports of the parts that are done, by number."""
        found = []
        for number in filter(self.is_done, range(self.n_parts)):
            with readable(self._report(number), "report of a part"):
                found.append(json.loads(self._report(number).read_text()))
        return found

    def complete(self, vocabulary: Vocabulary) -> bool:
        """Make the corpus of the parts, if all are there; return whether it is there."""
        try:
            if self.n_missing():
                return self.output.is_dir() and not self.folder.is_dir()
            parts = [_file_of(number) for number in range(self.n_parts)]
            describe_folder(self.folder, self.folder / parts[0], parts, vocabulary)
            with atomic_file(self.folder / VOCABULARY_FILE) as temporary:
                temporary.write_text(vocabulary.to_json())
            self.folder.rename(self.output)
        except (OSError, InputError):
            if self.output.is_dir() and not self.folder.is_dir():  # another process was faster
                return True
            raise
        for file in (self.output / PLAN, *self.output.glob("part-*.json")):
            file.unlink(missing_ok=True)
        return True

    def _report(self, number: int) -> Path:
        return self.folder / Path(_file_of(number)).with_suffix(".json")


def _file_of(number: int) -> str:
    return f"part-{number:05}.arrow"
