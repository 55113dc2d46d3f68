"""A whole corpus on disk through little memory: builds by the command line, watched from outside.

What a process takes for itself (anonymous memory) is what must stay bounded. Pages of the mapped corpus come on top of
that as long as memory is free: the system takes them back, so they stand in the note and are not counted.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import atlas

from corrmask_fast.cells.corpus_io import CorpusWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WATCH_S = 0.005


class Streamed(NamedTuple):
    """A corpus to make on disk, in pieces of ``piece_cells``."""

    n_cells: int
    n_genes: int
    density: float
    n_modules: int
    piece_cells: int = 100_000


# Ten times as many cells, beyond the 1.9 million whose sums 64 bits hold; and again, of the few genes of a panel.
STREAMED = (
    Streamed(300_000, 2_000, 0.03, 20),
    Streamed(3_000_000, 2_000, 0.03, 20),
    Streamed(30_000_000, 250, 0.055, 5, piece_cells=200_000),
)
STREAMED_SMOKE = (Streamed(4_000, 300, 0.05, 5, piece_cells=2_000),)


@contextmanager
def made_up_corpus_folder(shape: Streamed, keep: Path) -> Iterator[Path]:
    """Make a corpus with a piece of it in memory at a time; its parent is removed at the end, as it may be large."""
    keep.mkdir(parents=True, exist_ok=True)
    size = {"density": shape.density, "n_modules": shape.n_modules}
    with TemporaryDirectory(prefix="streamed-", dir=keep) as folder:
        with CorpusWriter(Path(folder, "cells"), atlas.vocabulary_of(shape.n_genes)) as writer:
            for piece in range(shape.n_cells // shape.piece_cells):
                made = atlas.made_up_corpus(shape.piece_cells, shape.n_genes, piece=piece, **size)
                writer.write(made.indptr, made.tokens)
        yield Path(folder, "cells")


def build_watched(corpus: Path, graph: Path, options: Sequence[str]) -> dict[str, Any]:
    """Build a graph of all cells by the command line; return its time and the largest memory it took for itself."""
    command = [sys.executable, "-m", "corrmask_fast", "graph", "build", corpus, "-o", graph, "--n-cells", "all"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen(
        [*map(str, command), "--no-progress", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        own = whole = 0
        while process.poll() is None:
            memory = _memory_of(process.pid)
            own, whole = max(own, memory.get("RssAnon", 0)), max(whole, memory.get("VmHWM", 0))
            time.sleep(WATCH_S)
        seconds = time.perf_counter() - began
        output = process.stdout.read() if process.stdout else ""
    if process.returncode != 0:
        raise SystemExit(f"our own build of {corpus} failed: {output}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    note = f"{(whole - own) / 2**20:.2f} GiB of files mapped beside"
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_gib": own / 2**20, "note": note}


def _memory_of(pid: int) -> dict[str, int]:
    """KiB of a process, by the names that Linux gives them; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if "kB" in rest}
