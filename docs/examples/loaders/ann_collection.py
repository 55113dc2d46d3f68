"""AnnData's own AnnCollection over several files, backed: views come with the genes' names."""

from __future__ import annotations

import anndata
from anndata.experimental import AnnCollection
from cells import check, make_collator, make_files
from torch.utils.data import DataLoader


class Views:
    """A collection as a dataset: a batch is a view of it."""

    def __init__(self, collection: AnnCollection) -> None:
        self.collection = collection

    def __len__(self) -> int:
        return self.collection.n_obs

    def __getitems__(self, indices: list[int]) -> object:
        return self.collection[sorted(indices)]


if __name__ == "__main__":
    paths = make_files()
    collection = AnnCollection([anndata.read_h5ad(path, backed="r") for path in paths], join_vars="inner")
    collator = make_collator(paths)
    loader = DataLoader(Views(collection), batch_size=64, shuffle=True, collate_fn=collator)
    check(collator, paths, list(loader))
