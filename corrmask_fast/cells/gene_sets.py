"""Gene sets, such as pathways: in ``.gmt`` files, and as tokens of a vocabulary."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, readable, shown

if TYPE_CHECKING:
    from corrmask_fast.cells.vocabulary import Vocabulary

__all__ = ["open_gene_sets", "read_gene_sets", "tokens_of_set"]

GZIP = b"\x1f\x8b"  # how such a file begins


def read_gene_sets(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    r"""Read gene sets from a ``.gmt`` file, as Reactome, MSigDB and Enrichr publish them.

    Parameters
    ----------
    path : path
        The file, which may be compressed by gzip. Each line is a set: its name, a description and its genes, separated
        by tabs. Empty lines and fields are skipped.

    Returns
    -------
    dict
        Name of a set → list of its genes, each once, in the order of the file.

    Raises
    ------
    InputError
        If there is no such file, it cannot be read, is not UTF-8, or has no set; if a line has fewer than three fields,
        no name or no gene, or a name stands twice. The message names the line.

    Examples
    --------
    >>> from tempfile import NamedTemporaryFile
    >>> from corrmask_fast import read_gene_sets
    >>> with NamedTemporaryFile("w+", suffix=".gmt") as file:
    ...     print("repair\tsome link\tPCNA\tXRCC1\nsplicing\t\tSF3B1\tU2AF1", file=file, flush=True)
    ...     read_gene_sets(file.name)
    {'repair': ['PCNA', 'XRCC1'], 'splicing': ['SF3B1', 'U2AF1']}
    """
    if not Path(path).is_file():
        raise InputError(f"no file at {path}; give a .gmt file of gene sets, such as Reactome's or MSigDB's")
    sets: dict[str, list[str]] = {}
    lines: dict[str, int] = {}  # where each name stands
    with readable(path, ".gmt file of gene sets"):
        content = Path(path).read_bytes()
        content = gzip.decompress(content) if content.startswith(GZIP) else content
        for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
            if not line.strip():
                continue
            name, genes = _set_of(line, number)
            if name in sets:
                raise InputError(
                    f"lines {lines[name]} and {number} are both called {shown(name)}; give one of them another name"
                )
            sets[name], lines[name] = genes, number
        if not sets:
            raise InputError(
                "it holds no gene set; each line must be a name, a description and genes, with tabs between"
            )
    return sets


def _set_of(line: bytes, number: int) -> tuple[str, list[str]]:
    """Return name and genes of a line."""
    try:
        fields = [field.strip() for field in line.decode().split("\t")]
    except UnicodeDecodeError as error:
        raise InputError(f"line {number} is not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    genes = list(dict.fromkeys(filter(None, fields[2:])))
    if not fields[0] or not genes:
        raise InputError(
            f"line {number} must be a name, a description and genes, with tabs between; "
            f"got {len(fields)} fields: {shown(line.decode())}"
        )
    return fields[0], genes


def open_gene_sets(sets: Any) -> Mapping[str, Iterable[Any]]:
    """Return gene sets that are given as a mapping, or as the path of a ``.gmt`` file."""
    found: Any = read_gene_sets(sets) if isinstance(sets, str | os.PathLike) else sets
    if not isinstance(found, Mapping):
        raise InputError(f"sets must be a mapping of names to genes, or the path of a .gmt file; got {shown(sets)}")
    return found


def tokens_of_set(vocabulary: Vocabulary, name: Any, genes: Any, lost: dict[Any, None] | None) -> np.ndarray:
    """Return the token ids of a set's genes, ascending; unknown genes go into ``lost``, where there is one."""
    if isinstance(genes, str | bytes) or not isinstance(genes, Iterable):
        raise InputError(f"the genes of the set {shown(name)} must be a list; got {shown(genes)}")
    tokens = set()
    for gene in genes:
        try:
            tokens.add(vocabulary.id_of(gene))
        except (InputError, TypeError) as error:
            if lost is None:
                raise InputError(f"the set {shown(name)}: {error}; unknown='skip' leaves such genes out") from error
            lost[shown(gene) if not isinstance(gene, str) else gene] = None
    return np.array(sorted(tokens), np.int64)
