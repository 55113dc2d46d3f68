"""scDataset (pip install scDataset): blocks of cells, shuffled, out of an AnnData; a batch is a view of it."""

from __future__ import annotations

import anndata
from cells import check, make_collator, make_files
from scdataset import BlockShuffling, scDataset
from torch.utils.data import DataLoader

if __name__ == "__main__":
    paths = make_files()
    collator = make_collator(paths)
    cells = anndata.concat([anndata.read_h5ad(path) for path in paths])
    dataset = scDataset(cells, BlockShuffling(block_size=8), batch_size=64, fetch_factor=4, batch_transform=collator)
    check(collator, paths, list(DataLoader(dataset, batch_size=None, num_workers=2)))
