"""Building the dependency graph from a corpus: Algorithm 1 of the paper (appendix A.4), exact to the bit."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus import Corpus
from corrmask_fast.errors import InputError, check_integer, check_number, check_seed
from corrmask_fast.graph.build.checkpoint import Checkpoint, fingerprint_cells
from corrmask_fast.graph.build.distributed import current_team
from corrmask_fast.graph.build.memory import MAX_CELLS, MAX_CELLS_OF_64_BITS, check_memory, plan_chunks
from corrmask_fast.graph.build.records import Cells
from corrmask_fast.graph.build.thresholds import suggest_thresholds
from corrmask_fast.graph.build.work import Work
from corrmask_fast.graph.dependency_graph import DependencyGraph, graph_of_pairs
from corrmask_fast.progress import progress_bar

if TYPE_CHECKING:
    import os

    from corrmask_fast.cells.stream import CorpusStream
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.build.distributed import Team
    from corrmask_fast.graph.build.records import GeneColumns, Pairs, Sample, Stages
    from corrmask_fast.progress import Bar

__all__ = ["build_dependency_graph"]

MAX_LENGTH = 65_535  # levels are kept in 16 bits


@dataclass(frozen=True)
class GraphParameters:
    """The parameters that decide a graph, besides its corpus; see :func:`build_dependency_graph`."""

    n_cells: int | None
    max_length: int
    n_neighbors: int
    rho_min: float
    min_cooccurrence: int
    min_presence: int
    max_genes: int | None
    seed: int

    @classmethod
    def checked(cls, **given: Any) -> GraphParameters:
        """Return the parameters, each checked; InputError if one is out of its range."""
        return cls(
            n_cells=None if given["n_cells"] is None else check_integer("n_cells", given["n_cells"], 1),
            max_length=check_integer("max_length", given["max_length"], 1, MAX_LENGTH),
            n_neighbors=check_integer("n_neighbors", given["n_neighbors"], 1),
            rho_min=check_number("rho_min", given["rho_min"], 0, 1),
            min_cooccurrence=check_integer("min_cooccurrence", given["min_cooccurrence"], 0),
            min_presence=check_integer("min_presence", given["min_presence"], 0),
            max_genes=None if given["max_genes"] is None else check_integer("max_genes", given["max_genes"], 1),
            seed=check_seed(given["seed"]),
        )

    def sample(self, corpus: Corpus) -> Cells:
        """Return the cells sampled from a corpus; InputError if they can give no graph."""
        if corpus.n_cells == 0:
            raise InputError("the corpus has no cells, and a graph needs some; check the file that it was read from")
        n_cells = corpus.n_cells if self.n_cells is None else min(self.n_cells, corpus.n_cells)
        if n_cells > MAX_CELLS:
            raise InputError(f"a graph is built from at most {MAX_CELLS} cells; got {n_cells}; lower n_cells")
        for name in ("min_cooccurrence", "min_presence"):
            if getattr(self, name) > n_cells:
                raise InputError(
                    f"{name} must be at most the number of cells that the graph is built from, here {n_cells}; "
                    f"got {getattr(self, name)}; lower it, or bring more cells; "
                    f"for {n_cells} cells {name}={suggest_thresholds(n_cells)[name]} is suggested"
                )
        rows = range(n_cells) if n_cells == corpus.n_cells else corpus.sample_rows(n_cells, self.seed)
        return Cells(corpus, rows, self.max_length)


def build_dependency_graph(
    corpus: Corpus | CorpusStream,
    *,
    n_cells: int | None = 100_000,
    max_length: int | None = 2048,
    n_neighbors: int = 50,
    rho_min: float = 0.2,
    min_cooccurrence: int = 200,
    min_presence: int = 50,
    max_genes: int | None = None,
    seed: int = 0,
    device: str = "auto",
    memory_limit: int | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DependencyGraph:
    """Find which genes of a corpus depend on each other.

    A gene at position pos (1-based) of a cell has the value ``max_length - pos``, an absent one 0. Genes whose values
    correlate over all cells (Spearman's rho) become neighbours, and the edge carries their rho over the cells that hold
    both. The result depends on corpus and parameters alone: it has the same bits for any device and number of threads.

    Parameters
    ----------
    corpus : Corpus or CorpusStream
        Tokenised cells, in memory or on disk. A corpus on disk may be larger than the memory. A stream is read once,
        and the sampled cells are held in memory; the graph is that of the same cells on disk. A stream may not be
        shuffled, and needs ``n_cells``.
    n_cells : int, optional
        Number of cells sampled without replacement (N_sub). None, or a smaller corpus: all cells.
    max_length : int, optional
        Number of genes read of each cell, from its first on (L_max, at most 65 535). None: the corpus's ``max_length``.
    n_neighbors : int
        Number of partners that each gene proposes (N_neigh): those of largest absolute rho over all cells. A pair is
        kept if either gene proposes it, so a gene may have more neighbours.
    rho_min : float
        Smallest absolute rho over all cells, in [0, 1].
    min_cooccurrence : int
        Smallest number of cells that hold both genes (M_min). Applied after ``n_neighbors``. The default is for 20 000
        cells and more; :func:`~corrmask_fast.suggest_thresholds` has values for fewer.
    min_presence : int
        Smallest number of sampled cells that hold a gene.
    max_genes : int, optional
        Number of genes kept: those with the largest sum of values. None: all.
    seed : int
        Seed of the sample of cells, in [0, 2**64).
    device : str
        ``"cpu"``; ``"cuda"``: torch's current CUDA device, which needs CuPy; ``"auto"``: ``"cuda"`` where a device and
        CuPy are found, else ``"cpu"``. The work is a float64 matrix product. Consumer GPUs are slow at float64: a CPU
        with many cores may be faster.
    memory_limit : int or str, optional
        Memory that this process may take for the build, in bytes or as text such as ``"8GB"``. The program and its
        libraries take some 0.3 GB more. If the sampled cells do not fit, they are read in chunks, in several passes:
        this is slower, with the same bits. None: 80 % of the memory that is free now, divided by the number of ranks on
        this machine.
    checkpoint : path, optional
        Folder in which the state of the build is saved: after each stage, and every minute of a long stage. Call with
        the same folder again to resume an interrupted build; the graph is the same. A folder belongs to one set of
        parameters and one corpus, which is checked by a hash of all sampled cells. Remove it when the graph is saved.
    progress : bool
        Show progress bars on standard error.

    Returns
    -------
    DependencyGraph
        ``rho`` is Spearman's rho over the cells that hold both genes (0 where one of them is constant there).
        ``rho_global`` is Spearman's rho over all cells.

    Raises
    ------
    InputError
        If a parameter is out of range; if the corpus has no cells, or fewer than ``min_cooccurrence`` or
        ``min_presence``; if a cell holds a token outside the vocabulary; if the checkpoint is of another build; if
        ``memory_limit`` is too little (the message says what is needed); if ``device="cuda"`` finds no CUDA device, or
        too little memory on it; on all ranks, if they were called with different arguments.
    MissingExtraError
        If ``device="cuda"`` finds no CuPy.
    ConnectionError
        On every other rank, if one rank stops or dies.

    Warns
    -----
    UserWarning
        If the graph has no edges; the warning names the step that dropped them.

    Notes
    -----
    Hacohen et al. 2026, Algorithm 1; docs/SPEC.md, section 2, defines it to the bit. Time and memory grow with the
    number of tokens: no genes by genes matrix is held.

    All sums are exact integers, and each is rounded to float64 once. So rho, before it is rounded to float32, has a
    relative error of at most 5 · 2**-53. Up to 1.9 million cells the sums fit 64 bits. Beyond, cells are read in chunks
    and sums take up to 128 bits. This is somewhat slower, with the same bound; the graph's params state it
    (``rho_error``).

    Inside an initialised ``torch.distributed`` process group all ranks must call this, with the same arguments. They
    divide the pairs of genes among each other, and each returns the whole graph, with the bits of a single process. Two
    environment variables limit how long ranks wait for each other, in seconds: ``CORRMASK_JOIN_SECONDS`` (300) until
    all ranks have started and called, and ``CORRMASK_WAIT_SECONDS`` (21 600) while another rank still computes. If a
    rank dies, the ranks that wait for it stop at once.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import Corpus, Vocabulary, build_dependency_graph
    >>> genes = Vocabulary(("<pad>", "<mask>", "A", "B", "C"))
    >>> corpus = Corpus(np.array([0, 3, 6, 9, 10]), np.array([2, 3, 4, 4, 2, 3, 2, 3, 4, 4]), genes)
    >>> graph = build_dependency_graph(corpus, rho_min=0.5, min_cooccurrence=3, min_presence=1, progress=False)
    >>> graph.neighbors("A")
    (array([3, 4], dtype=int32), array([ 1., -1.], dtype=float32))
    """
    with current_team() as team:
        parameters = GraphParameters.checked(
            n_cells=n_cells,
            max_length=corpus.max_length if max_length is None else max_length,
            n_neighbors=n_neighbors,
            rho_min=rho_min,
            min_cooccurrence=min_cooccurrence,
            min_presence=min_presence,
            max_genes=max_genes,
            seed=seed,
        )
        limit = check_memory(memory_limit)
        kind = _kind_of_device(device)
        if not isinstance(corpus, Corpus):
            corpus = corpus.sample(parameters.n_cells, parameters.seed)
        cells = parameters.sample(corpus)
        _agree_on_device(team, kind)
        work = _begin_work(
            team, checkpoint, cells, parameters, partial(progress_bar, shown=progress and team.rank == 0)
        )
        stages = _choose_stages(kind, cells, limit, work, asked_for_cuda=device == "cuda")

        sample = stages.read_sample(cells)
        corpus.warn_of_repeats()
        work.confirm(sample.presence.sum(axis=0), sample.value_sum)
        columns = stages.make_columns(sample, _kept_genes(sample, corpus.vocabulary, parameters))
        del sample  # its tokens are not needed again
        ranks = stages.rank_genes(columns)
        pairs = stages.strongest_pairs(columns, ranks, parameters.n_neighbors, parameters.rho_min)
        del ranks
        overlap, rho = stages.correlate_pairs(columns, pairs, parameters.min_cooccurrence)
    kept = overlap >= parameters.min_cooccurrence
    if not kept.any() and team.rank == 0:
        warnings.warn(_why_empty(columns, pairs, overlap, parameters), UserWarning, stacklevel=2)
    return graph_of_pairs(
        columns.genes[pairs.u[kept]],
        columns.genes[pairs.v[kept]],
        rho[kept],
        corpus.vocabulary,
        {
            **asdict(parameters),
            "n_cells_used": columns.n_cells,
            "n_genes_used": columns.genes.size,
            **({} if stages.rho_error is None else {"rho_error": stages.rho_error}),
        },
        pairs.rho[kept],
    )


def _kind_of_device(device: str) -> str:
    """Return "cpu" or "cuda" for a device as it was given."""
    from corrmask_fast.cuda import can_use_cuda
    from corrmask_fast.graph.build.cuda_device import check_cuda

    if device not in {"auto", "cpu", "cuda"}:
        raise InputError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}")
    if device == "cuda":
        check_cuda()
    return "cuda" if device == "cuda" or (device == "auto" and can_use_cuda()) else "cpu"


def _agree_on_device(team: Team, kind: str) -> None:
    """Raise unless all ranks build on the same kind of device; warn if ranks share a GPU while others are idle."""
    if team.size == 1:
        return
    fix = "give every rank device='cpu', or device='cuda' where each has a GPU and CuPy"
    team.agree({"the kind of device": kind}, fix)
    if kind == "cuda":
        from corrmask_fast.graph.build.cuda_device import warn_of_idle_devices

        warn_of_idle_devices(team)


def _begin_work(
    team: Team, checkpoint: str | os.PathLike[str] | None, cells: Cells, parameters: GraphParameters, bar: Bar
) -> Work:
    """Raise unless all ranks, and the checkpoint if there is one, build the same graph."""
    work = Work(team, Checkpoint(checkpoint, team.rank), bar)
    if team.size > 1 or work.checkpoint:
        settings = {**asdict(parameters), "corpus (its fingerprint)": fingerprint_cells(cells, bar)}
        team.agree({**settings, "whether there is a checkpoint": checkpoint is not None})
        work.checkpoint.open(settings)
    return work


def _choose_stages(kind: str, cells: Cells, limit: int | None, work: Work, *, asked_for_cuda: bool) -> Stages:
    """Return the stages for a kind of device: over cells in memory, or in chunks where they do not fit."""
    chunks = plan_chunks(cells, limit, work.team)
    if chunks is None and kind == "cuda":
        from corrmask_fast.graph.build.stages_cuda import CudaStages

        return CudaStages(work)
    if chunks is None:
        from corrmask_fast.graph.build.stages_cpu import CpuStages

        return CpuStages(work)
    if asked_for_cuda and chunks.wide:
        raise InputError(
            f"device='cuda' adds ranks up in 64 bits, which hold the sums of at most {MAX_CELLS_OF_64_BITS} cells; "
            "lower n_cells, or use device='cpu'"
        )
    if asked_for_cuda:
        raise InputError(
            "device='cuda' holds all sampled cells in memory, and these do not fit; lower n_cells, raise memory_limit, "
            "or use device='cpu', which reads them in chunks"
        )
    from corrmask_fast.graph.build.stages_streamed import StreamedStages

    return StreamedStages(work, chunks)


def _kept_genes(sample: Sample, vocabulary: Vocabulary, parameters: GraphParameters) -> np.ndarray:
    """Return the tokens, ascending, of the genes that the graph is built over."""
    lo, hi = vocabulary.gene_range
    genes = np.flatnonzero(sample.presence[:, lo:hi].sum(axis=0) >= parameters.min_presence) + lo
    if parameters.max_genes is not None:
        largest = np.argsort(-sample.value_sum[genes], kind="stable")[: parameters.max_genes]
        genes = np.sort(genes[largest])
    return genes


def _why_empty(columns: GeneColumns, pairs: Pairs, overlap: np.ndarray, parameters: GraphParameters) -> str:
    """Say which step left no edges."""
    if columns.genes.size < 2:
        few = f"{columns.genes.size} genes" if columns.genes.size != 1 else "1 gene"
        why = f"{few} present in at least min_presence={parameters.min_presence} of {columns.n_cells} cells"
        if parameters.max_genes is not None:
            why += f" within max_genes={parameters.max_genes}"
        return f"the graph has no edges: only {why}; lower min_presence, or bring more cells"
    if pairs.u.size == 0:
        return (
            f"the graph has no edges: no pair of its {columns.genes.size} genes has an absolute rho of at least "
            f"rho_min={parameters.rho_min}; lower rho_min, or bring more cells"
        )
    return (
        f"the graph has no edges: of {pairs.u.size} correlated pairs none stands together in at least "
        f"min_cooccurrence={parameters.min_cooccurrence} of {columns.n_cells} cells (at most {overlap.max()}); "
        "lower min_cooccurrence, or bring more cells"
    )
