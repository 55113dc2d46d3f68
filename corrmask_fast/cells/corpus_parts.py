"""A corpus of many inputs as a ``datasets`` folder with a part for each, made in any order, by any number of processes.

    OUT.parts/    while parts are missing                        OUT/    when all are there: renamed
      plan.json     inputs and options that the parts are of       part-00000.arrow …
      medians.json  of all inputs, if they were not given          vocabulary.json  medians.json
      part-00000.arrow, part-00000.json                            state.json  dataset_info.json  tokenize.json

A part is written under another name and renamed, then its report beside it: it is done when that is there. Whoever
finds that all are done makes a corpus of the folder; doing that twice does no harm. ``tokenize.json`` holds the plan
and the reports of the finished corpus: a process that comes late finds its work done.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cells.corpus_files import VOCABULARY_FILE
from corrmask_fast.cells.corpus_io import FolderSink, describe_folder
from corrmask_fast.errors import InputError, check_integer, import_extra, readable, shown
from corrmask_fast.files import atomic_file, check_output_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corrmask_fast.cells.vocabulary import Vocabulary

PLAN, MEDIANS, FINISHED = "plan.json", "medians.json", "tokenize.json"


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

    def __init__(self, output: Path, plan: dict[str, Any], n_parts: int) -> None:
        self.output, self.n_parts = output, n_parts
        self.folder = output.with_name(f"{output.name}.parts")
        self._plan = json.loads(json.dumps(plan, default=str))

    def finished(self) -> list[dict[str, Any]] | None:
        """Return the reports of the corpus if it was made by this plan already; None if there is none."""
        file = self.output / FINISHED
        if not file.is_file():
            return None
        with readable(file, "report of a corpus"):
            content = json.loads(file.read_text())
            return content["files"] if content["plan"] == self._plan else None

    def begin(self) -> None:
        """Make the folder, or go on in one of the same plan; parts of another are refused."""
        check_output_folder(self.folder).mkdir(exist_ok=True)
        file = self.folder / PLAN
        if not file.is_file():
            if others := [path.name for path in self.folder.iterdir() if not path.name.startswith(f".{PLAN}.")]:
                if not file.is_file():  # no other process was faster
                    raise InputError(
                        f"{self.folder} exists and holds no parts of a corpus ({others[0]} …); remove it, or choose "
                        "another output"
                    )
            else:
                self._write_plan(file)
        with readable(file, "plan"):
            there = json.loads(file.read_text())
        if there != self._plan:
            known = there if isinstance(there, dict) else {}
            differ = sorted(key for key in self._plan if known.get(key) != self._plan[key])
            raise InputError(
                f"{self.folder} holds parts of another run (it differs in: {', '.join(differ)}); remove that "
                "folder, or choose another output"
            )

    def _write_plan(self, file: Path) -> None:
        """Write the plan, whole, unless another process was faster."""
        handle, name = tempfile.mkstemp(prefix=f".{PLAN}.", dir=self.folder)
        with os.fdopen(handle, "w") as temporary:
            temporary.write(json.dumps(self._plan))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(name, file)
        except OSError:  # a file system without hard links
            Path(name).replace(file)
        Path(name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Remove the folder after a failure, if there is nothing in it that another call could go on with."""
        names = [path.name for path in self.folder.iterdir()]
        if names == [PLAN]:
            (self.folder / PLAN).unlink()
            self.folder.rmdir()

    def medians(self) -> dict[str, float] | None:
        """Return the medians that an earlier run found, None if there are none yet."""
        file = self.folder / MEDIANS
        if not file.is_file():
            return None
        with readable(file, "medians"):
            return {str(name): float(value) for name, value in json.loads(file.read_text()).items()}

    def keep_medians(self, medians: dict[str, float]) -> None:
        """Keep the medians for the other parts, and beside the corpus."""
        with atomic_file(self.folder / MEDIANS) as temporary:
            temporary.write_text(json.dumps(medians))

    def is_done(self, number: int) -> bool:
        """Whether a part was written, and is whole."""
        report, part = self._report(number), self.folder / _file_of(number)
        if not (report.is_file() and part.is_file()):
            return False
        with readable(report, "report of a part"):
            return part.stat().st_size == json.loads(report.read_text())["bytes"]

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
        size = (self.folder / _file_of(number)).stat().st_size
        with atomic_file(self._report(number)) as temporary:
            temporary.write_text(json.dumps(report | {"bytes": size}))

    def reports(self) -> list[dict[str, Any]]:
        """Return the reports of the parts that are done, by number; those of the corpus, if it is there."""
        found = []
        for number in range(self.n_parts):
            with contextlib.suppress(FileNotFoundError), readable(self._report(number), "report of a part"):
                if not self._report(number).exists():
                    continue
                found.append(json.loads(self._report(number).read_text()))
        return self.finished() or found

    def complete(self, vocabulary: Vocabulary) -> bool:
        """Make the corpus of the parts, if all are there; return whether it is there."""
        try:
            if not self.folder.is_dir() or self.n_missing():
                return self.finished() is not None
            names = [_file_of(number) for number in range(self.n_parts)]
            self._check_columns(names)
            describe_folder(self.folder, self.folder / names[0], names, vocabulary)
            for name, text in (
                (VOCABULARY_FILE, vocabulary.to_json()),
                (FINISHED, json.dumps({"plan": self._plan, "files": self.reports()})),
            ):
                with atomic_file(self.folder / name) as temporary:
                    temporary.write_text(text)
            self.folder.rename(self.output)
        except (OSError, InputError):
            if self.finished() is not None and not self.folder.is_dir():  # another process was faster
                return True
            raise
        for file in (self.output / PLAN, *self.output.glob("part-*.json")):
            file.unlink(missing_ok=True)
        return True

    def _check_columns(self, names: list[str]) -> None:
        """Raise InputError if parts have other columns than the first one: they would be no corpus."""
        pa, first = import_extra("pyarrow", "hf"), None
        for name in names:
            with readable(self.folder / name, "part of a corpus"), pa.memory_map(str(self.folder / name)) as source:
                schema = pa.ipc.open_stream(source).schema
                if not schema.equals(first := first or schema):
                    raise InputError(f"{self.folder / name} has other columns than {names[0]}; remove it and its .json")

    def _report(self, number: int) -> Path:
        return self.folder / Path(_file_of(number)).with_suffix(".json")


def _file_of(number: int) -> str:
    return f"part-{number:05}.arrow"
