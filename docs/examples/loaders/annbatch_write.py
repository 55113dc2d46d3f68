"""annbatch (Python 3.12 or newer): write its batches, counts with the genes' names, to a folder.

It runs in an environment of its own; annbatch_read.py masks the batches. In one environment, hand each batch of the
loader to the collator, as there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import scipy.sparse
import zarr
from annbatch import Loader, write_sharded

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    loader = Loader(batch_size=64, chunk_size=16, preload_nchunks=8, shuffle=True, preload_to_gpu=False)
    for path in sorted(folder.glob("*.h5ad")):
        cells = anndata.read_h5ad(path)
        group = zarr.open_group(str(path.with_suffix(".zarr")), mode="w", zarr_format=3)
        write_sharded(group, cells)
        loader.add_dataset(anndata.io.sparse_dataset(group["X"]), cells.obs, cells.var[[]])
    for number, batch in enumerate(loader):
        anndata.AnnData(scipy.sparse.csr_matrix(batch["X"]), var=batch["var"]).write_h5ad(folder / f"batch{number}.h5")
