"""A SciPy CSR matrix behind a PyTorch DataLoader with workers."""

from __future__ import annotations

import anndata
from cells import check, make_collator, make_files
from scipy.sparse import vstack
from torch.utils.data import DataLoader

from corrmask_fast import CountsDataset

if __name__ == "__main__":
    paths = make_files()
    files = [anndata.read_h5ad(path) for path in paths]
    collator = make_collator(paths, files[0].var_names)
    dataset = CountsDataset(vstack([file.X for file in files], format="csr"))
    loader = DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2, collate_fn=collator)
    check(collator, paths, list(loader))
