"""Mask the batches that annbatch_write.py wrote; called with the Python of annbatch's environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata
from cells import FOLDER, check, make_collator, make_files

if __name__ == "__main__":
    paths = make_files()
    subprocess.run([sys.argv[1], str(Path(__file__).with_name("annbatch_write.py")), str(FOLDER)], check=True)  # noqa: S603
    collator = make_collator(paths)
    batches = [anndata.read_h5ad(path) for path in sorted(FOLDER.glob("batch*.h5"))]
    check(collator, paths, [collator({"X": batch.X, "var": batch.var}) for batch in batches])
