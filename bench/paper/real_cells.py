"""Real cells for the experiments: counts and dictionaries of the folder that CORRMASK_DATA names, tokenised."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from corrmask_fast import Vocabulary, read_corpus, tokenize

CELLS = {"pbmc3k": "blood, 10x PBMC 3k", "baron_h1": "pancreas, Baron donor 1"}


def data_folder():
    """Return the folder, or end with a message that says what is missing."""
    folder = Path(os.environ.get("CORRMASK_DATA", ""))
    needed = [folder / f"{name}.h5ad" for name in CELLS] + [folder / "geneformer" / "token_dictionary.pkl"]
    missing = [path for path in needed if not path.exists()]
    if not os.environ.get("CORRMASK_DATA") or missing:
        print(
            "skipped: this needs real cells; set CORRMASK_DATA to a folder with "
            + ", ".join(str(path.relative_to(folder)) for path in needed),
            file=sys.stderr,
        )
        sys.exit(0)
    return folder


def read_cells(folder, name):
    """Return the cells of a file as a corpus in memory, tokenised with Geneformer's V1 dictionaries."""
    dictionaries = folder / "geneformer"
    vocabulary = Vocabulary.from_token_dictionary(
        dictionaries / "token_dictionary.pkl", dictionaries / "gene_name_id_dict.json"
    )
    with TemporaryDirectory() as scratch:
        tokenize(
            folder / f"{name}.h5ad",
            Path(scratch) / "cells.npz",
            vocabulary,
            dictionaries / "gene_median_dictionary.pkl",
            progress=False,
        )
        return read_corpus(Path(scratch) / "cells.npz")
