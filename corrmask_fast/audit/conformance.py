"""What a collator keeps of what masked language modelling and its training loop rely on.

Shares are tested at 5 sigma: the signed root of twice the log-likelihood ratio of a binomial, which bounds the exact
tail; where the numbers of rows scatter more than a binomial's, by that much less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.audit.collators import Feed, copied, name_of, seeded
from corrmask_fast.errors import InputError, check_integer, check_number, check_seed, reason
from corrmask_fast.masking.base import Masker
from corrmask_fast.masking.collator import DataCollatorForCorrMask
from corrmask_fast.masking.features import IGNORED_LABEL
from corrmask_fast.masking.schedules import check_rate
from corrmask_fast.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from corrmask_fast.audit.collators import Collated
    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.masking.base import RateLike

__all__ = ["ConformanceItem", "ConformanceReport", "check_collator"]

KEPT, BROKEN, NOT_APPLICABLE = "kept", "broken", "not applicable"
SIGMA = 5
FEW = 5  # with fewer masked genes a cell may well have the same mask twice
TENTHS = 10


@dataclass(frozen=True)
class ConformanceItem:
    """One property of a collator, and whether the collator keeps it.

    Attributes
    ----------
    name
        The property, in words.
    verdict
        ``"kept"``, ``"broken"`` or ``"not applicable"``.
    measured
        The number that decides: a share where the detail says of what, else how many tokens break the rule.
    detail
        What was measured, in a line.
    """

    name: str
    verdict: str
    measured: float
    detail: str


@dataclass(frozen=True)
class ConformanceReport:
    """What a collator keeps and breaks of what masked language modelling relies on.

    :func:`~corrmask_fast.check_collator` returns it. ``report["padding is never masked"]`` is the item of that name
    (KeyError if there is none); iterating goes over all items.

    Attributes
    ----------
    collator
        Name of the collator.
    n_cells
        Number of cells that it was tried on.
    items
        A tuple of items. Each has a ``name``; a ``verdict``, ``"kept"``, ``"broken"`` or ``"not applicable"``; the
        number that decides, ``measured``; and a ``detail`` in words.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import RandomMasker, Vocabulary, check_collator, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(60))))
    >>> rng = np.random.default_rng(0)
    >>> cells = read_corpus([2 + rng.permutation(60)[:40] for _ in range(20)], genes)
    >>> report = check_collator(RandomMasker(genes), cells, progress=False)
    >>> report["labels are the cell's tokens"].verdict, report.broken
    ('kept', ())
    """

    collator: str
    n_cells: int
    items: tuple[ConformanceItem, ...]

    def __getitem__(self, name: str) -> ConformanceItem:
        for item in self.items:
            if item.name == name:
                return item
        raise KeyError(f"no item {name!r} in this report; it has {', '.join(item.name for item in self.items)}")

    def __iter__(self) -> Iterator[ConformanceItem]:
        return iter(self.items)

    @property
    def broken(self) -> tuple[str, ...]:
        """Names of the items that are broken, as a tuple."""
        return tuple(item.name for item in self.items if item.verdict == BROKEN)

    def table(self) -> str:
        """Return the report as text.

        Returns
        -------
        str
            A title, then a line for each item.
        """
        names, verdicts = (max(len(getattr(item, key)) for item in self.items) for key in ("name", "verdict"))
        lines = [f"{item.verdict:{verdicts}}  {item.name:{names}}  {item.detail}" for item in self.items]
        broken = f"{len(self.broken)} of {len(self.items)} items broken"
        title = f"Conformance of {self.collator}: {self.n_cells:,} cells, {broken}"
        return "\n".join([title, *lines])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON.

        Returns
        -------
        dict
            ``collator``, ``n_cells``, ``broken`` (names), and ``items``, a dict for each with its attributes.
        """
        items = [dict(vars(item)) for item in self.items]
        return {"collator": self.collator, "n_cells": self.n_cells, "broken": list(self.broken), "items": items}


def check_collator(
    collator: Any,
    corpus: Corpus,
    *,
    dataset: Any = None,
    mlm_probability: RateLike | None = None,
    mask_replace_prob: float | None = None,
    random_replace_prob: float | None = None,
    n_cells: int = 256,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> ConformanceReport:
    """Test whether a collator, or a masker, keeps what training relies on: masks, labels, epochs, workers, resumes.

    Parameters
    ----------
    collator
        As for :func:`~corrmask_fast.audit_collator`. A :class:`~corrmask_fast.Masker` is checked in a
        :class:`~corrmask_fast.DataCollatorForCorrMask`.
    corpus
        A :class:`~corrmask_fast.Corpus`, whose cells are as long as the collator leaves them.
    dataset
        As for :func:`~corrmask_fast.audit_collator`.
    mlm_probability
        The rate that the collator should have, in [0, 1]: a number or (low, high). None: its own attribute of this
        name, or its masker's; without one the rate is not judged.
    mask_replace_prob
        Share of the masked genes that should become the mask token. None: likewise, else 0.8.
    random_replace_prob
        Share of the masked genes that should become a random gene. None: likewise, else 0.1.
    n_cells
        Test on a sample of this many cells; each passes a dozen times.
    batch_size
        Cells in a batch, >= 1; at most a quarter of all cells are taken.
    seed
        Of the sample and of the generators of Python, NumPy and torch (CPU), which are restored afterwards.
    progress
        Show a progress bar.

    Returns
    -------
    ConformanceReport
        An item for each property.

    Raises
    ------
    InputError
        If there are no cells, a parameter is out of range, the collator fails, or what it returns cannot be read (see
        :func:`~corrmask_fast.audit_collator`).

    Notes
    -----
    Workers are those of a DataLoader, started as the platform does. The ranks are two copies in this process, seeded
    alike, each with every second cell, in batches of one cell, so that only the division counts. A resume is a new copy
    that skips the earlier batches, with the generators' states restored. Shares are judged at 5 sigma.

    Examples
    --------
    >>> import numpy as np
    >>> from corrmask_fast import RandomMasker, Vocabulary, check_collator, read_corpus
    >>> genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(60))))
    >>> rng = np.random.default_rng(0)
    >>> cells = read_corpus([2 + rng.permutation(60)[: rng.integers(30, 60)] for _ in range(40)], genes)
    >>> report = check_collator(RandomMasker(genes), cells, progress=False)
    >>> report.broken
    ()
    >>> report["padding is never masked"].detail
    '0 of 463 padding columns'
    """
    if isinstance(collator, Masker):
        collator = DataCollatorForCorrMask(collator)
    if corpus.n_cells == 0:
        raise InputError("cannot check a collator on an empty corpus; give at least one cell")
    check_integer("batch_size", batch_size, 1)
    cells = corpus.sample_rows(n_cells, check_seed(seed))
    rate = _claimed(collator, "mlm_probability", mlm_probability)
    shares = [
        check_number(name, _claimed(collator, name, given, usual), 0, 1)
        for name, given, usual in (
            ("mask_replace_prob", mask_replace_prob, 0.8),
            ("random_replace_prob", random_replace_prob, 0.1),
        )
    ]
    if sum(shares) > 1:
        raise InputError(f"mask_replace_prob + random_replace_prob must be at most 1; got {shares[0]} + {shares[1]}")
    with progress_bar("check", None, "cell", shown=progress) as bar:
        trial = _Trial(collator, corpus, dataset, cells, batch_size, seed, bar)
        first, second = trial.epochs(2)
        rows = [_rows(trial.batches, epoch) for epoch in (first, second)]
        masked = np.concatenate([(batch.masked & (batch.places >= 0)).sum(1) for batch in first])
        judged = cells[masked >= FEW].tolist()
        items = [*_of_batches(first, corpus.vocabulary, rate, *shares), *trial.invariances(rows[0], rows[1], judged)]
    return ConformanceReport(name_of(collator), int(cells.size), tuple(items))


def _claimed(collator: Any, name: str, given: Any, usual: Any = None) -> Any:
    """Return a parameter: as given, else the collator's or its masker's own, else the usual one."""
    masker = getattr(collator, "masker", None)
    if given is None and name == "mlm_probability" and isinstance(masker, Masker):
        return masker.current_rates()[0]  # a schedule's are those of its step
    if given is None:
        given = getattr(collator, name, getattr(masker, name, None))
    return usual if given is None else given


# ------------------------------------------------------------------------------------------------ one epoch's batches


def _of_batches(
    batches: list[Collated], vocabulary: Any, rate: Any, to_mask: float, to_random: float
) -> Iterable[ConformanceItem]:
    """Judge masks, labels and replacements."""
    lo, hi = vocabulary.gene_range
    width = max(batch.labels.shape[1] for batch in batches)
    # Rows of all batches in one array; what is added on the right, -2, is no column.
    ids, labels, given, places = (
        np.concatenate([np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=-2) for a in arrays])
        for arrays in zip(*batches, strict=True)
    )
    gene, padding = (given >= lo) & (given < hi), places == -1
    masked = (labels != IGNORED_LABEL) & (places != -2)
    labelled = masked & gene
    yield _rate_item(labelled.sum(1), gene.sum(1), rate)
    yield _none("special tokens are never masked", masked & ~gene & ~padding, ~gene & (places >= 0), "special tokens")
    yield _none("padding is never masked", masked & padding, padding, "padding columns")
    plain = (places != -2) & ~masked
    yield _none("other tokens stay as they are", plain & (ids != given), plain, "tokens without a label")
    yield _none("labels are the cell's tokens", masked & (labels != given), masked, "labels")

    hidden = labelled & (ids == vocabulary.mask_token_id)
    same = labelled & (ids == given)
    drawn = labelled & ~hidden & ~same
    n = labelled.sum(1)
    # A random gene may be the one that stood there.
    chance, rest = to_random / (hi - lo), round(1 - to_mask - to_random, 12)
    parts = (
        ("mask token", hidden, to_mask, to_mask + chance),
        ("random", drawn, max(to_random - 2 * chance, 0), to_random),
        ("unchanged", same, rest, rest + chance),
    )
    sigmas = [_sigmas(part.sum(1), n, low, high) for _, part, low, high in parts]
    found = ", ".join(f"{_percent(part.sum(), n.sum())} {name}" for name, part, *_ in parts)
    claim = f"claimed {100 * to_mask:g}, {100 * to_random:g} and {100 * rest:g} %"
    yield _item(
        "shares of replacements",
        max(map(abs, sigmas)) <= SIGMA if n.any() else None,
        float(hidden.sum() / max(n.sum(), 1)),
        f"{found} of {n.sum():,} masked genes; {claim} ({max(sigmas, key=abs):+.1f} sigma at most)",
    )
    yield _drawn_item(ids[drawn], given[drawn], lo, hi)


def _rate_item(masked: np.ndarray, genes: np.ndarray, rate: Any) -> ConformanceItem:
    """Judge (rows,) masked genes: each row's share rounded to whole genes, or all rows' share within the error."""
    name, share = "masking rate", float(masked.sum() / max(genes.sum(), 1))
    found = f"{_percent(masked.sum(), genes.sum())} of {genes.sum():,} genes"
    if rate is None:
        return _item(name, None, share, f"{found}; give mlm_probability to compare it with")
    known = check_rate("mlm_probability", rate)
    low, high = known.low, known.high
    claim = f"claimed {100 * low:g} %" if low == high else f"claimed {100 * low:g} to {100 * high:g} %"
    # A float64 rate like 0.15 may lie just above what is meant.
    exact = (masked >= np.floor(genes * low - 1e-9)) & (masked <= np.ceil(genes * high + 1e-9))
    if exact.all():
        return _item(name, True, share, f"{found}; {claim}, in every row to the next whole gene")
    sigmas = _sigmas(masked, genes, low, high)
    return _item(name, abs(sigmas) <= SIGMA, share, f"{found}; {claim} ({sigmas:+.1f} sigma)")


def _drawn_item(drawn: np.ndarray, instead_of: np.ndarray, lo: int, hi: int) -> ConformanceItem:
    """Judge random replacements: genes, and every tenth of the genes as often as chance has it."""
    name, size = "random replacements are any gene", hi - lo
    genes = (drawn >= lo) & (drawn < hi)
    wrong = int(drawn.size - genes.sum())
    if drawn.size == 0 or size <= TENTHS:
        return _item(name, None, 0, f"{drawn.size} random replacements, {size} genes: nothing to judge")
    if wrong:
        return _item(name, False, wrong, f"{wrong:,} of {drawn.size:,} are special tokens or no tokens")
    # Not the gene that stood there: a tenth holds one gene less where that is in it.
    tenth_of = np.arange(size) * TENTHS // size
    places = np.bincount(tenth_of) - np.bincount(tenth_of[instead_of - lo], minlength=TENTHS) / drawn.size
    counts, chances = np.bincount(tenth_of[drawn - lo], minlength=TENTHS), places / (size - 1)
    sigmas = [_sigmas(np.array([k]), np.array([drawn.size]), p, p) for k, p in zip(counts, chances, strict=True)]
    worst = int(np.argmax(np.abs(sigmas)))
    text = (
        f"0 of {drawn.size:,} are special tokens; a tenth of the genes gets {_percent(counts[worst], drawn.size)}, by "
        f"chance {100 * chances[worst]:.2f} % ({sigmas[worst]:+.1f} sigma at most)"
    )
    return _item(name, abs(sigmas[worst]) <= SIGMA, 0, text)


def _sigmas(hits: np.ndarray, trials: np.ndarray, low: float, high: float) -> float:
    """Return how far (rows,) hits lie outside a share in [low, high], in sigma (see the top of this file)."""
    n, k = int(trials.sum()), int(hits.sum())
    share = k / n if n else low
    expected = min(max(share, low), high)
    if share == expected:
        return 0.0
    if expected in {0.0, 1.0}:
        return math.copysign(math.inf, share - expected)
    ratio = sum(count * math.log(count / n / p) for count, p in ((k, expected), (n - k, 1 - expected)) if count)
    scatter = float(((hits - trials * share) ** 2).sum() / (n * share * (1 - share))) if 0 < k < n else 1.0
    return math.copysign(math.sqrt(2 * max(ratio, 0.0) / max(scatter, 1.0)), share - expected)


def _none(name: str, wrong: np.ndarray, all_of: np.ndarray, what: str) -> ConformanceItem:
    count, total = int(wrong.sum()), int(all_of.sum())
    return _item(name, count == 0 if total else None, count, f"{count:,} of {total:,} {what}")


def _item(name: str, kept: Any, measured: float, detail: str) -> ConformanceItem:
    """Return an item; ``kept`` None: not applicable."""
    verdict = NOT_APPLICABLE if kept is None else KEPT if kept else BROKEN
    return ConformanceItem(name, verdict, float(measured), detail)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "none"


# -------------------------------------------------------------------------------------- epochs, workers, ranks, resumes

Rows = dict[int, bytes]  # cell → its tokens and labels after masking


class _Trial:
    """Passes of the same cells through copies of a collator, in other layouts."""

    def __init__(
        self, collator: Any, corpus: Corpus, dataset: Any, cells: np.ndarray, batch_size: int, seed: int, bar: Any
    ) -> None:
        self.original, self.corpus, self.dataset, self.cells = collator, corpus, dataset, cells
        size = min(batch_size, max(cells.size // 4, 1))  # so that there is a middle to resume in
        self.batches = [cells[begin : begin + size] for begin in range(0, cells.size, size)]
        self.seed, self.bar = seed, bar

    def fresh(self) -> Feed:
        """Return the pipeline as a new process has it."""
        return Feed(copied(self.original), self.corpus, self.dataset)

    def collate(self, feed: Feed, batches: list[np.ndarray], workers: int = 0, epoch: int = 0) -> list[Collated]:
        """Return the batches of an epoch, collated by so many workers."""
        from torch.utils.data import DataLoader

        feed.set_epoch(epoch)
        loader: Any = map(feed, batches)
        if workers:
            numbers: Any = [batch.tolist() for batch in batches]
            # The examples are the cells' numbers: the feed fetches the cells, in the worker.
            loader = DataLoader(range(self.corpus.n_cells), batch_sampler=numbers, num_workers=workers, collate_fn=feed)  # type: ignore[arg-type]
        found = []
        for batch in loader:
            found.append(batch)
            self.bar.update(len(batch.labels))
        return found

    def epochs(self, n: int, workers: int = 0) -> list[list[Collated]]:
        """Return the first epochs of a new process."""
        feed = self.fresh()
        with seeded(self.seed):
            return [self.collate(feed, self.batches, workers, epoch) for epoch in range(n)]

    def once(self, batches: list[np.ndarray], workers: int = 0) -> Rows:
        """Return the rows of these batches, the first that a new process collates."""
        with seeded(self.seed):
            return _rows(batches, self.collate(self.fresh(), batches, workers))

    def invariances(self, first: Rows, second: Rows, judged: list[int]) -> Iterator[ConformanceItem]:
        """Judge what masks depend on, given the first epochs without workers, and the cells that tell epochs apart."""
        repeated = {"without workers": sum(first[cell] == second[cell] for cell in judged)}
        two = None
        try:
            one = self.once(self.batches, 1)
            two, later = (_rows(self.batches, epoch) for epoch in self.epochs(2, 2))
        except Exception as error:  # noqa: BLE001 (a worker that cannot start, or in which the collator fails)
            workers = _item("same masks with any workers", False, 1, f"failed in workers: {reason(error)}")
        else:
            workers = _same("same masks with any workers", {"1 worker": (first, one), "2 workers": (first, two)})
            repeated["with 2 workers"] = sum(two[cell] == later[cell] for cell in judged)
        most, text = max(repeated.values()), " and ".join(f"{count} {how}" for how, count in repeated.items())
        yield _item(
            "fresh masks in each epoch",
            most <= len(judged) / 2 if judged else None,
            most / max(len(judged), 1),
            f"of {len(judged)} cells with {FEW} masked genes or more, the same mask in epochs 0 and 1: {text}",
        )
        yield workers

        size = len(self.batches[0]) // 2 or 2
        order = np.random.default_rng(self.seed).permutation(self.cells)
        other = self.once([order[begin : begin + size] for begin in range(0, order.size, size)])
        yield _same("same masks in any batch", {f"batches of {size}, shuffled": (first, other)})

        cells = list(self.cells[:, None])
        ranks = self.once(cells[::2]) | self.once(cells[1::2])
        yield _same("same masks on any ranks", {"2 ranks": (self.once(cells), ranks)})

        half = len(self.batches) // 4 * 2  # even: with two workers each goes on with the batches that it had
        rest = self.batches[half:]
        with seeded(self.seed):
            self.collate(self.fresh(), self.batches[:half])
            resumed = {"no workers": (first, _rows(rest, self.collate(self.fresh(), rest)))}
        if two is not None:
            resumed["2 workers"] = two, self.once(rest, 2)
        yield _same("same masks after a resume", resumed if half else {})


def _rows(batches: list[np.ndarray], collated: list[Collated]) -> Rows:
    rows = {}
    for cells, batch in zip(batches, collated, strict=True):
        for row, cell in enumerate(cells.tolist()):
            inside = batch.places[row] >= 0
            rows[cell] = batch.input_ids[row, inside].tobytes() + batch.labels[row, inside].tobytes()
    return rows


def _same(name: str, pairs: dict[str, tuple[Rows, Rows]]) -> ConformanceItem:
    """Judge whether cells come out as usual in other layouts: layout → (as usual, in this layout)."""
    shares, told = [0.0], []
    for layout, (usual, rows) in pairs.items():
        other = sum(usual[cell] != row for cell, row in rows.items())
        shares.append(other / len(rows))
        told.append(f"{other} of {len(rows)} with {layout}")
    text = f"cells that come out otherwise: {', '.join(told)}" if told else "too few cells"
    return _item(name, max(shares) == 0 if told else None, max(shares), text)
