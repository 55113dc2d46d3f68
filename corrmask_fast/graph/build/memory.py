"""How much memory a build takes, whether its cells fit, and how large chunks are if they do not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.row_numbers import rows_between
from corrmask_fast.errors import InputError, as_integer, shown
from corrmask_fast.threads import get_num_threads

if TYPE_CHECKING:
    from corrmask_fast.graph.build.distributed import Team
    from corrmask_fast.graph.build.records import Cells

MAX_CELLS = 2**31 - 1  # ranks are kept in 32 bits
MAX_CELLS_OF_64_BITS = 1_905_000  # 4/3 · cells³ < 2**63: every sum of ranks fits int64
RHO_ERROR = 5 * 2.0**-53  # of rho over any number of cells; see stages_streamed.py

UNITS = {"": 1, **{f"{k}b": 1000 ** (i + 1) for i, k in enumerate("kmgt")}}
UNITS |= {f"{k}ib": 1024 ** (i + 1) for i, k in enumerate("kmgt")}
SHARE_OF_FREE = 0.8  # of the memory that is free, where no limit is given
LENGTHS_AT_ONCE = 1 << 16  # cells
BYTES_A_TOKEN = 20  # as token, cell, level, rank, and once more as a row's member and value
BYTES_A_PANEL_CELL = 128 * 4 + 2  # for each thread: a row of a panel, a level of a common gene
BYTES_A_THREAD = 24 << 20  # blocks of columns that BLAS multiplies, and their product
MIN_CHUNK_CELLS, MAX_CHUNK_CELLS = 1024, 1 << 16  # of a chunk
BYTES_A_SUM = 12, 8  # kept, beyond 64 bits; and of a chunk, in each thread
PANEL_GENES = 128  # the largest task: all genes against a panel
SMALL = 32 << 20  # lists, counts and whatever else does not grow with cells


def check_memory(limit: int | str | None) -> int | None:
    """Return a limit in bytes: a number of them, or text such as ``"8GB"`` or ``"500 MiB"``; None stays None.

    >>> check_memory("8GB"), check_memory("1.5GiB")
    (8000000000, 1610612736)
    """
    if limit is None:
        return None
    number = as_integer(limit)
    if number is None and isinstance(limit, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", limit.lower())
        if match and match[2] in UNITS:
            size = float(match[1]) * UNITS[match[2]]
            number = math.floor(size) if math.isfinite(size) else None
    if number is None or number < 1:
        raise InputError(f"memory_limit must be bytes, or text such as '8GB' or '500MiB'; got {shown(limit)}")
    return number


def in_units(size: float) -> str:
    """Return a size as text that :func:`check_memory` reads, rounded up.

    >>> in_units(1234567), in_units(8e9)
    ('1.24MB', '8GB')
    """
    name = "GB" if size >= 1e9 else "MB"
    return f"{math.ceil(100 * size / UNITS[name.lower()]) / 100:g}{name}"


def free_memory() -> int | None:
    """Return the bytes that a process may still take, as far as the system tells (Linux), or None."""
    free = [1024 * int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal():
        free.append(max(0, int(limit[0]) - int(used[0])))
    return min(free, default=None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


@dataclass(frozen=True)
class Need:
    """The memory that a build takes, in bytes."""

    n_cells: int
    n_tokens: int
    longest: float  # mean length of a block of cells, of the block where it is largest
    vocabulary_size: int
    max_length: int
    sampled: bool = False  # whether the indices of the cells are held, too

    @classmethod
    def of(cls, cells: Cells) -> Need:
        """Return the needs of sampled cells, from their lengths; no token is read."""
        corpus, rows, max_length = cells
        total, longest = 0, 0.0
        cut = min(max_length, corpus.max_length)
        for begin in range(0, len(rows), LENGTHS_AT_ONCE):
            block = rows_between(rows, begin, begin + LENGTHS_AT_ONCE)
            lengths = np.minimum(corpus.lengths_of(block), cut)
            total += int(lengths.sum())
            longest = max(longest, float(lengths.mean()))
        return cls(len(rows), total, longest, corpus.vocabulary.size, max_length, not isinstance(rows, range))

    def _working(self, n_cells: int) -> float:
        """Bytes for ``n_cells`` at once, besides their tokens."""
        threads = get_num_threads()
        blocks = self.vocabulary_size / 512 + 1
        return threads * (BYTES_A_THREAD + n_cells * BYTES_A_PANEL_CELL) + 4 * n_cells * blocks + SMALL

    @property
    def in_memory(self) -> float:
        """Bytes with all cells in memory."""
        return BYTES_A_TOKEN * self.n_tokens + self._working(self.n_cells)

    @property
    def tables(self) -> float:
        """Bytes of the counts, then ranks, of every level of every gene, and of the indices of sampled cells."""
        return 4.0 * self.vocabulary_size * (self.max_length + 1) + 8.0 * self.n_cells * self.sampled

    def chunk(self, n_cells: int) -> float:
        """Bytes with a chunk of ``n_cells`` in memory, besides the tables and the sums of a pass."""
        return BYTES_A_TOKEN * self.longest * n_cells + self._working(n_cells)

    @property
    def minimum(self) -> float:
        """Bytes with the smallest chunks, and the fewest sums in a pass."""
        return self.tables + self.chunk(min(MIN_CHUNK_CELLS, self.n_cells)) + self.min_band

    @property
    def min_band(self) -> int:
        """Bytes of the sums of the largest task."""
        kept, working = BYTES_A_SUM
        return (kept + working * get_num_threads()) * PANEL_GENES * self.vocabulary_size


@dataclass(frozen=True)
class ChunkPlan:
    """How cells that do not fit memory pass in chunks."""

    chunk_cells: int  # in memory at a time; the same on all ranks of a team
    band_bytes: int  # of sums that are kept while all chunks pass
    wide: bool = False  # whether sums take more than 64 bits


def plan_chunks(cells: Cells, limit: int | None, team: Team) -> ChunkPlan | None:
    """Return how the sampled cells pass in chunks, or None if they fit memory as a whole.

    All ranks of a team pass their cells, or none does. Ranks have memory and threads of their own but divide the cells
    by chunks: the smallest chunk of any rank holds for all. How many sums a rank keeps in a pass is its own affair.

    Parameters
    ----------
    cells
        The sampled cells; only their lengths are read.
    limit
        Bytes that each rank may take; None: what is free, shared by the ranks of one machine.
    team
        All ranks.

    Raises
    ------
    InputError
        If the limit is too little for the smallest chunks; says what is needed.
    """
    need = Need.of(cells)
    max_length = cells.max_length
    if limit is None and (free := free_memory()) is not None:
        limit = int(SHARE_OF_FREE * free / team.local_size)
    wide = need.n_cells > MAX_CELLS_OF_64_BITS
    if not team.any(wide or (limit is not None and need.in_memory > limit)):
        return None
    if limit is None:
        return ChunkPlan(team.min(MAX_CHUNK_CELLS), 1 << 62, wide)
    if limit < need.minimum:
        whole = not wide and need.in_memory < need.minimum
        tables = f"ranks of {max_length} places for {need.vocabulary_size} tokens take {in_units(need.tables)}"
        lower = "n_cells" if whole else f"max_length ({tables})"
        ranks = f", or start fewer processes (now {team.local_size} on this machine)" if team.local_size > 1 else ""
        raise InputError(
            f"memory_limit={in_units(limit)} is too little: this build needs at least "
            f"{in_units(need.in_memory if whole else need.minimum)}; raise memory_limit, or lower {lower} or the "
            f"number of threads (now {get_num_threads()}){ranks}"
        )
    left = limit - need.tables - need.chunk(0)
    a_cell = need.chunk(1) - need.chunk(0)
    # A third for cells: larger chunks are worth little from some ten thousand on, and each pass reads all of them.
    chunk_cells = team.min(int(min(MAX_CHUNK_CELLS, max(MIN_CHUNK_CELLS, left / 3 / a_cell))))
    return ChunkPlan(chunk_cells, int(max(need.min_band, left - a_cell * chunk_cells)), wide)
