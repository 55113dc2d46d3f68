"""``corrmask-fast embed``: cells or genes as vectors of a model, in an AnnData."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import add_corpus, check_outputs, command, open_corpus, setting
from corrmask_fast.errors import InputError, import_extra

if TYPE_CHECKING:
    import argparse


def add_embed(commands: Any) -> None:
    """Add the command."""
    parser = command(
        commands,
        "embed",
        _embed,
        summary="cells or genes as vectors of a model, in an .h5ad file for scanpy",
        text="Embed every cell of a corpus: the mean of the model's last layer over the cell's genes. The file has "
        "obsm['X_embedding'] and the corpus's obs columns, and no counts. With --genes its observations are genes: "
        "obsm['X_embedding'] is the mean of a gene's vectors over the cells that hold it, "
        "obsm['X_embedding_static'] the model's input embedding. docs/how-to/embeddings.md draws a UMAP with scanpy.",
        example="embed run/model cells.dataset -o embedded.h5ad",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint (config.json, model.safetensors)")
    add_corpus(parser)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.h5ad", help="file to write")
    parser.add_argument("--genes", dest="of_genes", action="store_true", help="embed genes in place of cells")
    parser.add_argument(
        "--pool",
        choices=["mean", "cls"],
        help="vector of a cell: the mean over its genes, or that of <cls> (default: mean)",
    )
    setting(
        parser, "--layer", -1, "N", "layer: -1 the last one, -2 the one before it, 0 the embeddings before the first"
    )
    parser.add_argument("--name", default="embedding", help="obsm['X_NAME'] holds the vectors (default: %(default)s)")
    parser.add_argument(
        "--obs-names",
        metavar="COLUMN",
        help="obs column with the cells' names (default: obs_names, where tokenize --obs-names puts them)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="cut cells to N tokens, <cls> and <eos> included (default: all the model sees)",
    )
    setting(parser, "--batch-size", 64, "N", "cells at a time")
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="where to compute (default: %(default)s)"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        choices=["float32", "bfloat16"],
        help="bfloat16 is quicker on a GPU, with about 3 digits (default: %(default)s)",
    )


def _embed(arguments: argparse.Namespace) -> None:
    from corrmask_fast.files import atomic_file

    check_outputs(arguments, "output")
    if Path(arguments.output).suffix.lower() != ".h5ad":
        raise InputError(f"embeddings are written to a file ending in .h5ad; got {arguments.output}")
    for option in ("pool", "obs_names") if arguments.of_genes else ():
        if getattr(arguments, option) is not None:
            raise InputError(f"{option}={getattr(arguments, option)!r} applies to cells; leave it out with --genes")
    import_extra("transformers", "hf")
    import_extra("anndata", "anndata")
    from corrmask_fast.evaluation.embeddings import cells_to_anndata, embed_cells, embed_genes, genes_to_anndata

    corpus, name = open_corpus(arguments), arguments.name
    options = {
        key: getattr(arguments, key) for key in ("layer", "max_length", "batch_size", "device", "precision", "progress")
    }
    if arguments.of_genes:
        genes = embed_genes(arguments.model, corpus, **options)
        adata, more = genes_to_anndata(genes, corpus.vocabulary, name=name), f" and obsm['X_{name}_static']"
    else:
        embedded = embed_cells(arguments.model, corpus, pool=arguments.pool or "mean", **options)
        adata = cells_to_anndata(embedded, corpus, name=name, obs_names=arguments.obs_names)
        more = ""
    adata.uns[name] = {"model": arguments.model, "layer": arguments.layer, "pool": arguments.pool or "mean"}
    with atomic_file(arguments.output) as temporary:
        adata.write_h5ad(temporary)
    what, width = "genes" if arguments.of_genes else "cells", adata.obsm[f"X_{name}"].shape[1]
    columns = ", ".join(adata.obs.columns) or "none"
    print(f"{arguments.output}: {adata.n_obs:,} {what}, {width} numbers each in obsm['X_{name}']{more}; obs: {columns}")
