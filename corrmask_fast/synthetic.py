"""Made-up cells whose truth is known: co-regulated modules and cell types, planted into realistic counts.

    mean of gene g in cell c  =  depth of c * share of g * exp(loading of g * activity of g's module in c + marker of g)
    count  ~  Poisson(mean * Gamma)  (negative binomial),  then lost altogether with probability DROPOUT ** count

A module's activity has a part of the cell's type and a part of the cell alone, so its genes rise and fall together
within a type too. Markers are genes outside the modules that differ between types: they correlate without being
planted, as anything does that tells cell types apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.vocabulary import Vocabulary
from corrmask_fast.errors import InputError, check_integer, check_seed, import_extra
from corrmask_fast.files import atomic_file

if TYPE_CHECKING:
    import os

    from scipy.sparse import csr_matrix

    from corrmask_fast.graph.dependency_graph import DependencyGraph

__all__ = ["SyntheticCells", "generate_cells", "module_recovery"]

MODULE_SHARE, MARKER_SHARE = 0.3, 0.1  # of all genes: in a module; outside, but different between types
COUNTS_PER_GENE = 0.45  # of a median cell, before dropout: about a tenth of all entries are not zero
DROPOUT = 0.3
DISPERSION = 4.0  # shape of the Gamma: variance = mean + mean² / DISPERSION
# Standard deviations of natural logarithms.
SHARE_SD, DEPTH_SD, TYPE_SD, CELL_SD, MARKER_SD = 2.2, 0.4, 0.8, 1.0, 0.9
LOADINGS = (0.6, 1.4)  # of genes on their module, uniform
CHUNK_CELLS = 1000  # held as dense arrays at a time; part of what a seed means


@dataclass(frozen=True)
class SyntheticCells:
    """Made-up counts, with the modules and cell types that were planted in them.

    Attributes
    ----------
    counts
        scipy.sparse.csr_matrix, (n_cells, n_genes) int32: counts of molecules.
    modules
        (n_genes,) int32: module of each gene, −1 for none.
    cell_types
        (n_cells,) int32: type of each cell.
    vocabulary
        :class:`~corrmask_fast.Vocabulary` in the form of Geneformer's V1: gene i is token 2 + i.

    See Also
    --------
    generate_cells : Makes them.

    Examples
    --------
    >>> from corrmask_fast.synthetic import generate_cells
    >>> cells = generate_cells(100, 50, n_modules=5, n_types=2)
    >>> cells.modules.shape, cells.cell_types.shape, cells.vocabulary.size
    ((50,), (100,), 52)
    """

    counts: csr_matrix
    modules: np.ndarray
    cell_types: np.ndarray
    vocabulary: Vocabulary

    @property
    def gene_names(self) -> tuple[str, ...]:
        """Names of the genes, in the order of the columns of ``counts``."""
        lo, hi = self.vocabulary.gene_range
        return self.vocabulary.names[lo:hi]

    def write_h5ad(self, path: str | os.PathLike[str]) -> None:
        """Write an AnnData file with the counts in ``X``, and the columns ``obs.cell_type`` and ``var.module``.

        Parameters
        ----------
        path
            The file to write.

        Raises
        ------
        MissingExtraError
            Without anndata (extra ``anndata``).
        """
        anndata: Any = import_extra("anndata", "anndata")
        pandas: Any = import_extra("pandas", "anndata")
        types = [f"type {i}" for i in range(self.cell_types.max() + 1)]
        obs = pandas.DataFrame(
            {"cell_type": pandas.Categorical.from_codes(self.cell_types, types)},
            index=[f"cell{i}" for i in range(self.cell_types.size)],
        )
        var = pandas.DataFrame({"module": self.modules}, index=list(self.gene_names))
        with atomic_file(path) as temporary:
            anndata.AnnData(self.counts, obs=obs, var=var).write_h5ad(temporary)


def generate_cells(
    n_cells: int = 20_000, n_genes: int = 4_000, *, n_modules: int = 40, n_types: int = 8, seed: int = 0
) -> SyntheticCells:
    """Make up cells with planted modules and cell types.

    With the defaults this takes about 4 seconds on one core. Genes range from very rare ones to housekeeping genes;
    about a tenth of the counts are not zero.

    Parameters
    ----------
    n_cells, n_genes
        Numbers of cells and genes.
    n_modules
        Number of co-regulated modules. They have the same size, and 30 % of the genes together.
    n_types
        Number of cell types. They differ in size.
    seed
        Seed of a NumPy generator. The same seed gives the same cells on machines of one kind.

    Returns
    -------
    SyntheticCells
        The counts, and what was planted in them.

    Raises
    ------
    InputError
        If a number is out of range, or the modules would have fewer than two genes each.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast.synthetic import generate_cells
    >>> cells = generate_cells(100, 50, n_modules=5, n_types=2)
    >>> cells.counts.shape, cells.gene_names[:2], np.bincount(cells.modules[cells.modules >= 0]).tolist()
    ((100, 50), ('GENE0001', 'GENE0002'), [3, 3, 3, 3, 3])
    """
    from scipy.sparse import csr_matrix, vstack

    for name, value in (("n_cells", n_cells), ("n_genes", n_genes), ("n_modules", n_modules), ("n_types", n_types)):
        check_integer(name, value, 1)
    in_modules = int(MODULE_SHARE * n_genes)
    if in_modules < 2 * n_modules:
        raise InputError(
            f"n_modules must leave each module two genes: at most {in_modules // 2} with {n_genes} genes "
            f"({MODULE_SHARE:.0%} of them in modules); got {n_modules}"
        )
    rng = np.random.default_rng(check_seed(seed))
    share = np.exp(rng.normal(0, SHARE_SD, n_genes))
    share = (share / share.sum()).astype(np.float32)
    order = rng.permutation(n_genes)
    modules = np.full(n_genes, -1, np.int32)
    modules[order[:in_modules]] = np.arange(in_modules) % n_modules
    loading = rng.uniform(*LOADINGS, n_genes).astype(np.float32)
    cell_types = rng.choice(n_types, n_cells, p=rng.dirichlet(np.full(n_types, 3.0))).astype(np.int32)
    type_activity = rng.normal(0, TYPE_SD, (n_types, n_modules))
    marker = np.zeros((n_types, n_genes), np.float32)
    markers = order[in_modules : in_modules + int(MARKER_SHARE * n_genes)]
    marker[:, markers] = rng.normal(0, MARKER_SD, (n_types, markers.size))

    chunks = []
    for begin in range(0, n_cells, CHUNK_CELLS):
        types = cell_types[begin : begin + CHUNK_CELLS]
        activity = type_activity[types] + rng.normal(0, CELL_SD, (types.size, n_modules))
        activity = np.pad(activity, ((0, 0), (0, 1))).astype(np.float32)  # module -1 reads the last column: no activity
        mean = share * np.exp(loading * activity[:, modules] + marker[types])
        depth = COUNTS_PER_GENE * n_genes * np.exp(rng.normal(0, DEPTH_SD, types.size))
        mean *= (depth / mean.sum(axis=1)).astype(np.float32)[:, None]
        mean *= rng.standard_gamma(DISPERSION, mean.shape, np.float32) / np.float32(DISPERSION)
        counts = csr_matrix(rng.poisson(mean).astype(np.int32))
        counts.data *= rng.random(counts.nnz) >= DROPOUT**counts.data
        counts.eliminate_zeros()
        chunks.append(counts)
    digits = max(4, len(str(n_genes)))
    names = (f"GENE{i + 1:0{digits}d}" for i in range(n_genes))
    return SyntheticCells(vstack(chunks, "csr"), modules, cell_types, Vocabulary(("<pad>", "<mask>", *names)))


def module_recovery(
    graph: DependencyGraph, modules: np.ndarray, *, expressed: np.ndarray | None = None
) -> dict[str, float]:
    """Compare a graph with the planted modules.

    Parameters
    ----------
    graph
        :class:`~corrmask_fast.DependencyGraph` of cells with planted modules.
    modules
        (n_genes,) integers in the order of the gene tokens: module of each gene, −1 for none.
    expressed
        (n_genes,) bool: genes that count for the recall, such as those in enough cells. None: genes with an edge.

    Returns
    -------
    dict
        ``n_edges``: number of undirected edges. ``n_genes``: number of expressed genes. ``precision``: share of edges
        within one module. ``recall``: of all pairs of expressed genes of one module, the share with an edge.
        ``precision_by_chance``: what is expected of edges drawn between genes of the same degrees.
        ``recall_by_chance``: what is expected of as many edges drawn between any two expressed genes. A share is NaN if
        there is nothing to count.

    Raises
    ------
    InputError
        If ``modules`` or ``expressed`` does not have one value for each gene of the graph's vocabulary.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import DependencyGraph
    >>> from corrmask_fast.synthetic import module_recovery
    >>> from corrmask_fast.testing import make_vocabulary
    >>> graph = DependencyGraph.from_edges([("G0", "G1"), ("G0", "G2")], make_vocabulary(4))
    >>> found = module_recovery(graph, np.array([0, 0, -1, -1]))
    >>> found["precision"], found["recall"]  # G0-G1 lies within the module, G0-G2 does not
    (0.5, 1.0)
    """
    lo, hi = graph.vocabulary.gene_range
    modules = _per_gene("modules", modules, hi - lo)
    degree = np.diff(graph.indptr)[lo:hi].astype(np.int64)
    expressed = degree > 0 if expressed is None else _per_gene("expressed", expressed, hi - lo).astype(np.bool_)
    u = np.repeat(np.arange(graph.indptr.size - 1), np.diff(graph.indptr)) - lo
    v = graph.indices.astype(np.int64) - lo
    once = u < v
    u, v = u[once], v[once]
    within = (modules[u] == modules[v]) & (modules[u] >= 0)
    counted = expressed[u] & expressed[v]

    planted = modules >= 0
    ends = np.bincount(modules[planted], degree[planted])
    own = np.bincount(modules[planted], degree[planted] ** 2)
    sizes = np.bincount(modules[planted & expressed]).astype(np.float64)
    n_expressed = int(np.count_nonzero(expressed))
    return {
        "n_edges": u.size,
        "n_genes": n_expressed,
        "precision": _share(within.sum(), u.size),
        "precision_by_chance": _share((ends**2 - own).sum(), degree.sum() ** 2 - (degree**2).sum()),
        "recall": _share((within & counted).sum(), (sizes * (sizes - 1) / 2).sum()),
        "recall_by_chance": _share(counted.sum(), n_expressed * (n_expressed - 1) / 2),
    }


def _per_gene(name: str, values: np.ndarray, n_genes: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (n_genes,):
        raise InputError(f"{name} must have one value for each of the {n_genes} genes; got shape {values.shape}")
    return values


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
