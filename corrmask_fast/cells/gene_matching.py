"""Which column of the counts is which gene: ids, symbols, retired ids, and columns that are no genes."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from corrmask_fast.cells.dictionaries import read_dictionary
from corrmask_fast.errors import InputError, listed, shown

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from corrmask_fast.cells.anndata_store import Frame
    from corrmask_fast.cells.vocabulary import Vocabulary

    GeneMapping = Mapping[str, str] | str | os.PathLike[str]

# Where AnnData files keep ids beside an index of symbols, and symbols beside an index of ids.
ID_COLUMNS = ("ensembl_id", "gene_ids", "gene_id", "feature_id")
SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "feature_name", "gene_name", "gene_names", "symbol", "symbols")
VERSIONED = re.compile(r"(ENS[A-Z]*G\d+)\.\d+")
ENSEMBL = re.compile(r"ENS[A-Z]*G\d+(\.\d+)?")
FEATURE_TYPES = "feature_types"  # Cell Ranger's column of var
GENE_EXPRESSION = {"gene expression", "gex", "rna"}
FEW = 0.2  # below this share of genes, or of counts, a file is probably of another species


@dataclass(frozen=True)
class GeneMatch:
    """Which token each column of the counts is."""

    column: str
    token_of_column: np.ndarray  # (n_columns,) int32, -1 where no gene of the vocabulary
    counted: np.ndarray | None = None  # (n_columns,) bool: columns of a cell's total; None: all
    left_out: Mapping[str, int] = field(default_factory=dict)  # other feature types → their number of columns
    n_mapped: int = 0  # columns found through the gene mapping alone
    n_ambiguous: int = 0  # columns found by a symbol that several genes share
    n_by_id: int = 0  # columns found by the very name that the vocabulary has
    read: Mapping[str, list[str]] = field(default_factory=dict, repr=False)  # columns of var that were looked at

    @property
    def names(self) -> list[str]:
        """The names of the columns, by which genes were found."""
        return self.read[self.column]

    def counting_tokens(self) -> np.ndarray:
        """(columns,) int32: the token of each column as kernels take it: -1 without one, NOT_COUNTED beside totals."""
        from corrmask_fast.kernels.encode import NOT_COUNTED

        tokens = self.token_of_column
        return tokens if self.counted is None else np.where(self.counted, tokens, NOT_COUNTED).astype(np.int32)

    @property
    def tokens(self) -> np.ndarray:
        """The tokens of all columns that have one."""
        return self.token_of_column[self.token_of_column >= 0]

    @property
    def n_genes(self) -> int:
        """Number of genes of the vocabulary found."""
        return np.unique(self.tokens).size

    @property
    def n_columns(self) -> int:
        """Number of columns that are genes, of the vocabulary or not."""
        return self.token_of_column.size if self.counted is None else int(np.count_nonzero(self.counted))

    def only(self, tokens: np.ndarray) -> GeneMatch:
        """Leave out the columns whose token is False in ``tokens`` (V,) bool."""
        mine = self.token_of_column
        return replace(self, token_of_column=np.where((mine >= 0) & tokens[mine], mine, -1).astype(np.int32))


def match_genes(
    var: Frame, name: str, vocabulary: Vocabulary, gene_column: str | None, gene_mapping: GeneMapping | None = None
) -> GeneMatch:
    """Find the vocabulary's genes among the rows of ``var``; None: by whichever column of it matches most genes.

    ``name`` is where ``var`` comes from, in messages.
    """
    mapping = {} if gene_mapping is None else read_dictionary(gene_mapping)
    known, (counted, left_out) = vocabulary.tokens_by_name, gene_columns(var, name)
    if mapping and all(_token(known, str(current)) < 0 for current in mapping.values()):
        old, current = next(iter(mapping.items()))
        raise InputError(
            f"gene_mapping names no gene of the vocabulary: {shown(old)} becomes {shown(current)}, and so on; it must "
            "map retired ids to names of the vocabulary (are its columns swapped?)"
        )
    if gene_column is None:
        columns = var.columns()
        candidates = {each: names_of(var, each) for each in ("index", *(id_ for id_ in ID_COLUMNS if id_ in columns))}
    else:
        candidates = {gene_column: names_of(var, gene_column)}
    matches = []
    for column, names in candidates.items():
        found = np.array([_token(known, each) for each in names], np.int32)
        if counted is not None:
            found[~counted] = -1
        n_direct = np.count_nonzero(found >= 0)
        if mapping:
            for place in np.flatnonzero(found < 0 if counted is None else (found < 0) & counted):
                found[place] = _token(known, _mapped(mapping, names[place]))
        n_mapped = int(np.count_nonzero(found >= 0) - n_direct)
        matches.append(GeneMatch(column, found, counted, left_out, n_mapped, read=candidates))
    best = max(matches, key=lambda match: match.n_genes)
    if best.n_genes == 0:
        raise InputError(_no_gene(name, vocabulary, candidates))
    _warn_of_few(name, vocabulary, best)
    places = np.flatnonzero(best.token_of_column >= 0).tolist()
    tokens = best.token_of_column[places].tolist()
    by_id = sum(vocabulary.names[t] == unversioned(best.names[place]) for place, t in zip(places, tokens, strict=True))
    shared = vocabulary.ambiguous_symbols if by_id < len(places) else frozenset()
    return replace(best, n_by_id=by_id, n_ambiguous=sum(best.names[place] in shared for place in places))


def symbols_of(var: Frame, genes: GeneMatch, vocabulary: Vocabulary) -> dict[str, str]:
    """Return gene name → symbol as the file has it, where genes were found by id; else nothing."""
    if genes.n_by_id == 0:
        return {}  # found by symbols, which the vocabulary has
    names, found = vocabulary.names, np.flatnonzero(genes.token_of_column >= 0).tolist()
    tokens = genes.token_of_column[found].tolist()
    there = {"index", *var.columns()} - {genes.column}
    for column in ("index", *SYMBOL_COLUMNS):
        if column not in there:
            continue
        symbols = genes.read.get(column) or names_of(var, column)
        if 2 * sum(_is_ensembl(symbol) or symbol.isdigit() for symbol in symbols) >= len(symbols):
            continue
        out: dict[str, str] = {}
        for place, token in zip(found, tokens, strict=True):
            symbol = symbols[place]
            if symbol and symbol != names[token] and not _is_ensembl(symbol):
                out.setdefault(names[token], symbol)
        return out
    return {}


def unversioned(name: str) -> str:
    """Return an Ensembl id without its version; other names as they are."""
    return VERSIONED.sub(r"\1", name) if "." in name else name


def _is_ensembl(name: str) -> bool:
    return name.startswith("ENS") and ENSEMBL.fullmatch(name) is not None


def _token(known: Mapping[str, int], name: str) -> int:
    token = known.get(name)
    return known.get(unversioned(name), -1) if token is None else token


def _mapped(mapping: Mapping[str, str], name: str) -> str:
    return str(mapping.get(name, mapping.get(unversioned(name), name)))


def names_of(var: Frame, column: str) -> list[str]:
    """Return a column of ``var`` as text, "" where it has no value; ``"index"`` is the index."""
    if column == "index":
        return var.index().tolist()
    values = var.column(column).to_numpy()
    return ["" if value is None else str(value) for value in values.tolist()]


def gene_columns(var: Frame, name: str) -> tuple[np.ndarray | None, dict[str, int]]:
    """Return which columns are genes where ``var`` says of what type they are (None: all), and the other types."""
    if FEATURE_TYPES not in var.columns():
        return None, {}
    types = names_of(var, FEATURE_TYPES)
    genes = np.array([kind.lower() in GENE_EXPRESSION for kind in types], np.bool_)
    if genes.all():
        return None, {}
    left_out = Counter(kind or "no type" for kind, gene in zip(types, genes, strict=True) if not gene)
    if not genes.any():
        warnings.warn(
            f"no column of {name} has the feature type 'Gene Expression' (there are "
            f"{listed(left_out)}); all columns count",
            UserWarning,
            stacklevel=2,
        )
        return None, {}
    return genes, dict(left_out)


def _no_gene(source: str, vocabulary: Vocabulary, candidates: Mapping[str, list[str]]) -> str:
    lo = vocabulary.gene_range[0]
    theirs = "; ".join(f"{column}: {listed(names[:3])}" for column, names in candidates.items())
    mine = [vocabulary.names[token] for token in range(lo, min(lo + 3, vocabulary.gene_range[1]))]
    shown_names = listed(
        f"{name} ({vocabulary.symbols[name]})" if name in vocabulary.symbols else name for name in mine
    )
    return (
        f"no gene of {source} is in the vocabulary. The file has {theirs}; the vocabulary has {shown_names}. Name "
        "the column of ids with gene_column=, or give symbols (symbols=) if the file has symbols only"
    )


def _warn_of_few(source: str, vocabulary: Vocabulary, match: GeneMatch) -> None:
    """Warn where hardly a gene matches: of another species, or by another kind of name."""
    lo, hi = vocabulary.gene_range
    if match.n_genes >= FEW * min(hi - lo, match.n_columns):
        return
    known = vocabulary.tokens_by_name
    upper = sum(_token(known, name.upper()) >= 0 for name in match.names)
    more = (
        f"; in capitals {upper} would match: are these genes of another species?" if upper > 2 * match.n_genes else ""
    )
    warnings.warn(
        f"only {match.n_genes} genes of {source} are in the vocabulary of {hi - lo}, of {match.n_columns} columns "
        f"(by var {match.column}){more}",
        UserWarning,
        stacklevel=2,
    )


def warn_of_few_counts(name: str, share: float) -> None:
    """Warn where most counts are of genes that the vocabulary (or the medians) lacks."""
    if share < FEW:
        warnings.warn(
            f"only {100 * share:.1f} % of the counts of {name} are of genes with a token and a median; check that "
            "vocabulary, medians and totals belong to these cells",
            UserWarning,
            stacklevel=2,
        )


def warn_of_other_names(source: str, names: Mapping[str, None], more: Mapping[str, None]) -> None:
    """Warn where an input shares hardly a name of a gene with the inputs before it."""
    shared = len(names.keys() & more.keys())
    if shared < FEW * min(len(names), len(more)):
        warnings.warn(
            f"{source} shares {shared} of its {len(more)} genes' names with the inputs before it; are they of one "
            "organism, and named alike? Name a column of var with gene_column, or give a vocabulary",
            UserWarning,
            stacklevel=2,
        )
