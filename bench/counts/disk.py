"""Loaders that hand out counts of a file on disk, and one that hands out tokens: each passes once over all cells.

Every loader shuffles, hands out batches of ``batch`` cells, and lies in an environment of its own (peers.txt). What a
loader needs written first (its own format) is off the clock, for both ways alike.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLAF = "slafdb"


def scdataset(path: Path, batch: int) -> Callable[[], Iterator[Any]]:
    """Return passes of scDataset over a backed AnnData, in blocks of 16 cells."""
    import anndata
    from scdataset import BlockShuffling, scDataset
    from torch.utils.data import DataLoader

    cells = anndata.read_h5ad(path, backed="r")

    def begin() -> Iterator[Any]:
        dataset = scDataset(
            cells, BlockShuffling(block_size=16), batch, fetch_factor=8, fetch_transform=lambda view: view.to_memory()
        )
        return (view.X for view in DataLoader(dataset, batch_size=None))

    return begin


def scdl(path: Path, batch: int) -> Callable[[], Iterator[Any]]:
    """Return passes over the memory-mapped arrays of bionemo-scdl, cell by cell in any order."""
    from bionemo.scdl.io.single_cell_memmap_dataset import SingleCellMemMapDataset

    dataset = SingleCellMemMapDataset(str(path.with_suffix(".scdl")), str(path), use_X_not_raw=True)
    width = int(dataset.number_of_variables()[0])

    def begin() -> Iterator[Any]:
        order = np.random.default_rng(0).permutation(len(dataset))
        for first in range(0, order.size, batch):
            rows = [dataset.get_row(int(i))[0] for i in order[first : first + batch]]
            indptr = np.concatenate([[0], np.cumsum([values.size for values, _ in rows])])
            counts, columns = (np.concatenate(parts) for parts in zip(*rows, strict=True))
            yield sp.csr_matrix((counts, columns, indptr), (len(rows), width))

    return begin


def slaf_microseconds(path: Path, batch: int, longest: int, n_genes: int, n_cells: int) -> float:
    """Return the microseconds a cell of a pass of slafdb's tokenised loader; its tokens are padded, and not masked.

    It reads ahead in threads of its own, and ends a minute after its last batch: the pass is timed until all cells are
    there, in a process that then ends.
    """
    command = [sys.executable, __file__, str(path), *map(str, (batch, longest, n_genes, n_cells))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"{SLAF} failed: {(done.stdout + done.stderr)[-300:]}")
    return float(done.stdout.splitlines()[-1]) * 1e6 / n_cells


def _slaf_pass(path: Path, batch: int, longest: int, n_genes: int, n_cells: int) -> None:
    """Print the seconds of a pass; the file is converted before, once."""
    from slaf import SLAFArray
    from slaf.data import SLAFConverter
    from slaf.ml import SLAFDataLoader

    folder = path.with_suffix(".slaf")
    if not folder.exists():
        SLAFConverter().convert(str(path), str(folder))
    array = SLAFArray(str(folder))
    time.sleep(2)  # it reads its metadata in the background, and fails if it is asked before
    began, left = time.perf_counter(), n_cells
    options = {"batch_size": batch, "max_genes": longest, "vocab_size": n_genes + 100, "verbose": False}
    for found in SLAFDataLoader(array, "geneformer", **options):
        left -= len(found["input_ids"])
        if left <= 0:
            print(time.perf_counter() - began, flush=True)
            os._exit(0)  # its threads would wait
    raise SystemExit(f"{left} cells did not come")


LOADERS = {
    "scDataset": (scdataset, "scdataset"),
    "bionemo-scdl": (scdl, "bionemo.scdl"),
}  # each gives passes, whose batches are CSR


def missing(module: str) -> bool:
    """Whether a package is not installed here."""
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


if __name__ == "__main__":
    _slaf_pass(Path(sys.argv[1]), *map(int, sys.argv[2:]))
