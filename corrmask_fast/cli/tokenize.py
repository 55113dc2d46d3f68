"""``corrmask-fast tokenize`` and ``medians``: counts to rank-value encoded cells."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import (
    add_dictionary_options,
    check_dictionary,
    command,
    inputs_of,
    load_vocabulary,
    roles_of,
)
from corrmask_fast.errors import InputError

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

READING = ("layer", "gene_column", "gene_mapping", "filter_pass", "total", "allow_fractional")
INPUTS = "AnnData with raw counts: .h5ad files, zarr stores, folders of these"


def add_tokenize(commands: Any) -> None:
    """Add ``tokenize``."""
    parser = command(
        commands,
        "tokenize",
        _tokenize,
        summary="counts (AnnData) to rank-value encoded cells",
        text="Turn raw counts into Geneformer's rank-value encoding: the counts of a cell are scaled to a sum of "
        "10 000 and divided by each gene's median; then the genes are sorted by falling value. Writes a Hugging Face "
        "datasets folder, or an .npz file. Several inputs become one corpus, with a column that names each cell's "
        "file. After an interruption, the same command goes on with the inputs that are missing.",
        notes="If var has a column feature_types, only its Gene Expression features are read, for the totals of cells "
        "too.\nUnder torchrun each rank writes its share of the inputs, as with --shard.",
        example="tokenize cells.h5ad more/ -o cells.dataset --tokens token_dictionary.pkl --medians "
        "gene_median_dictionary.pkl --symbols gene_name_id_dict.pkl --obs cell_type",
    )
    parser.add_argument("inputs", metavar="IN", nargs="+", help=f"{INPUTS}; without -o the last one is OUT")
    parser.add_argument("-o", "--output", metavar="OUT", help="folder to write, or a file ending in .npz")
    parser.add_argument("--medians", metavar="FILE", help="gene medians (.pkl or .json; default: of these cells)")
    _add_reading(parser)
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="largest number of tokens of a cell (default: 2048; 4096 with <cls> and <eos>)",
    )
    parser.add_argument(
        "--values",
        action="store_true",
        help="write each gene's count too, and all genes of a cell: for models such as scGPT",
    )
    parser.add_argument("--obs", nargs="+", default=[], metavar="COLUMN", help="obs columns to keep")
    parser.add_argument(
        "--obs-names",
        nargs="?",
        const="obs_names",
        metavar="COLUMN",
        help="keep the names of the cells too, in this column (default: obs_names)",
    )
    parser.add_argument(
        "--file-column",
        default="file",
        metavar="COLUMN",
        help="with several inputs: column that names each cell's file, or 'none' (default: file)",
    )
    parser.add_argument(
        "--shard", type=_shard, metavar="K/N", help="write only the K-th of N shares of the inputs; needs --medians"
    )


def add_medians(commands: Any) -> None:
    """Add ``medians``."""
    parser = command(
        commands,
        "medians",
        _medians,
        summary="each gene's non-zero median over all cells of many files",
        text="Find the median of each gene's counts per 10 000, over all cells of all inputs in which it is not 0. The "
        "median is exact, and memory is bounded. tokenize --medians and RankEncoder take the file.",
        example="medians cells.h5ad more/ -o medians.json --tokens token_dictionary.pkl",
    )
    parser.add_argument("inputs", metavar="IN", nargs="+", help=INPUTS)
    parser.add_argument("-o", "--output", required=True, metavar="FILE.json", help="file to write, from gene to median")
    _add_reading(parser)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add how counts are read: what both commands share."""
    parser.add_argument("--tokens", metavar="DICT", help="token dictionary (.pkl or .json; default: the inputs' genes)")
    add_dictionary_options(parser, "--tokens")
    parser.add_argument("--layer", help="layer with the raw counts, or 'raw' for .raw (default: X)")
    parser.add_argument(
        "--gene-column", metavar="COLUMN", help="var column with the gene ids (default: the one that matches best)"
    )
    parser.add_argument(
        "--gene-mapping", metavar="FILE", help="dictionary from retired to current gene ids (.pkl or .json)"
    )
    parser.add_argument(
        "--filter-pass",
        default="auto",
        metavar="COLUMN",
        help="obs column that is 1 for the cells to read, or 'none' for all cells (default: filter_pass, if there is "
        "one)",
    )
    parser.add_argument(
        "--total", metavar="COLUMN", help="obs column with the total count of each cell (default: the sum)"
    )
    parser.add_argument(
        "--allow-fractional",
        action="store_true",
        help="accept counts that are not integers: corrected (SoupX) or estimated (RSEM)",
    )


def _shard(text: str) -> tuple[int, int]:
    k, slash, n = text.partition("/")
    if not (slash and k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise argparse.ArgumentTypeError(f"must be K/N with K from 1 to N, such as 3/16; got {text!r}")
    return int(k), int(n)


def _shard_of_rank() -> tuple[int, int] | None:
    """Return the share of this rank of torchrun; None outside."""
    rank, ranks = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank) + 1, int(ranks)) if rank.isdecimal() and ranks.isdecimal() and int(ranks) > 1 else None


def _vocabulary(arguments: argparse.Namespace) -> Vocabulary | None:
    check_dictionary(arguments, "tokens")
    if arguments.tokens is None:
        return None
    return load_vocabulary(arguments.tokens, arguments.symbols, roles_of(arguments))


def _tokenize(arguments: argparse.Namespace) -> None:
    from corrmask_fast.cells.tokenizer import tokenize
    from corrmask_fast.files import check_not_input

    if arguments.output is None:
        if len(arguments.inputs) < 2:
            raise InputError("there is no output; give -o OUT, a folder to write or a file ending in .npz")
        *arguments.inputs, arguments.output = arguments.inputs
    for path in inputs_of(arguments):  # tokenize looks at the counts themselves, in folders too
        check_not_input(arguments.output, path)
    report = tokenize(
        arguments.inputs,
        arguments.output,
        _vocabulary(arguments),
        arguments.medians,
        obs=arguments.obs,
        obs_names=arguments.obs_names,
        file_column=None if arguments.file_column == "none" else arguments.file_column,
        max_length=arguments.max_length,
        values=arguments.values,
        shard=arguments.shard or _shard_of_rank(),
        progress=arguments.progress,
        **{name: getattr(arguments, name) for name in READING},
    )
    print(report)


def _medians(arguments: argparse.Namespace) -> None:
    import json

    from corrmask_fast.cells import sources
    from corrmask_fast.cells.tokenizer import corpus_medians
    from corrmask_fast.cli.options import check_outputs
    from corrmask_fast.files import atomic_file, check_not_input

    check_outputs(arguments, "output")
    for source in sources.inputs_of(arguments.inputs):
        check_not_input(arguments.output, source)
    if Path(arguments.output).suffix != ".json":
        raise InputError(f"the medians must go to a file ending in .json; got {arguments.output}")
    medians = corpus_medians(
        arguments.inputs,
        _vocabulary(arguments),
        progress=arguments.progress,
        **{name: getattr(arguments, name) for name in READING},
    )
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(json.dumps(medians, indent=0))
    print(f"medians of {len(medians):,} genes written to {arguments.output}")
