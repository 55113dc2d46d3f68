"""Cells of genes with values to batches of hidden values: ``python bench/values.py``; rows go to results/values.csv.

The rivals are the arithmetic of scGPT's DataCollator, written anew (cell by cell: bins by ``np.quantile`` and
``np.digitize``, a draw of genes, padding, a Bernoulli mask), and the same over padded tensors in plain PyTorch.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness.bench import Bench, parser_of
from harness.goals import Goal
from harness.timing import Contestant

from corrmask_fast import DataCollatorForValues, RaggedBatch, RandomMasker, Vocabulary, set_num_threads

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = ("bins", "log1p")
N_GENES, LONGEST, N_BINS, P, PAD_VALUE, MASK_VALUE = 20_000, 1_200, 51, 0.4, -2.0, -1.0
EXPRESSED = (700, 2_000, 6_000)  # genes of a cell
SCGPT, TORCH = "scGPT's arithmetic", "plain PyTorch"
OURS, AS_LISTS = "DataCollatorForValues", "DataCollatorForValues, from dicts of tensors"
GOALS = tuple(
    Goal(f"{n} genes, {case}", f"{case} {n}", OURS, (rival,), least)
    for case in CASES
    for n in EXPRESSED
    for rival, least in ((SCGPT, 20), (TORCH, 10))
)


def bins_of(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the bin of each value above 0; one that lies on several edges takes any of theirs."""
    edges = np.quantile(values, np.linspace(0, 1, N_BINS - 1))
    upto, below = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.ceil(rng.random(values.size) * (below - upto) + upto).clip(1)


def log1p_of(values: Any) -> Any:
    return (values / values.sum() * 10_000).log1p()


def scgpt_batch(cells: list[dict[str, torch.Tensor]], transform: str, rng: np.random.Generator) -> Any:
    """Collate cell by cell: ``<cls>`` first, then a draw of the genes."""
    length = min(LONGEST, max(len(cell["genes"]) for cell in cells))
    genes, values = [], []
    for cell in cells:
        ids, own = cell["genes"], cell["expressions"].clone()
        if transform == "bins":
            own[1:] = torch.from_numpy(bins_of(own[1:].numpy(), rng)).float()
        else:
            own[1:] = log1p_of(own[1:])
        if len(ids) > length:
            chosen = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(len(ids) - 1)[: length - 1]])
            ids, own = ids[chosen], own[chosen]
        elif len(ids) < length:
            ids = torch.cat([ids, torch.zeros(length - len(ids), dtype=torch.int64)])
            own = torch.cat([own, torch.full((length - len(own),), PAD_VALUE)])
        genes.append(ids)
        values.append(own)
    gene, expr = torch.stack(genes), torch.stack(values)
    chance = torch.full(expr.shape, P)
    chance[expr == PAD_VALUE] = 0
    chance[:, 0] = 0
    return gene, expr, expr.masked_fill(torch.bernoulli(chance).bool(), MASK_VALUE)


def torch_batch(cells: list[dict[str, torch.Tensor]], transform: str) -> Any:
    """Collate all cells at once, in operations over padded tensors."""
    pad = torch.nn.utils.rnn.pad_sequence
    gene = pad([cell["genes"] for cell in cells], batch_first=True)
    expr = pad([cell["expressions"] for cell in cells], batch_first=True, padding_value=torch.nan)
    expr[:, 0] = torch.nan
    if transform == "bins":
        edges = torch.nanquantile(expr, torch.linspace(0, 1, N_BINS - 1), dim=1).T.contiguous()
        filled = expr.nan_to_num(0)
        upto, below = torch.searchsorted(edges, filled, right=True), torch.searchsorted(edges, filled)
        expr = ((torch.rand(expr.shape) * (below - upto) + upto).ceil().clamp(min=1)).where(~expr.isnan(), torch.nan)
    else:
        expr = (expr / expr.nansum(dim=1, keepdim=True) * 10_000).log1p()
    if gene.shape[1] > LONGEST:
        order = torch.rand(gene.shape).masked_fill(gene == 0, 2)
        order[:, 0] = -1
        chosen = order.argsort(dim=1)[:, :LONGEST]
        gene, expr = gene.gather(1, chosen), expr.gather(1, chosen)
    hidden = (torch.rand(expr.shape) < P) & ~expr.isnan()
    expr = expr.nan_to_num(PAD_VALUE)
    return gene, expr, expr.masked_fill(hidden, MASK_VALUE)


def check(collator: DataCollatorForValues, batch: RaggedBatch, cells: list[dict[str, torch.Tensor]], case: str) -> None:
    """All ways keep each gene with a value that may be its own, hide about as many, and never <cls>."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)  # the shares below are checked: they must not be luck
    ours = collator(batch)
    found = {OURS: [ours[name] for name in ("gene", "expr", "masked_expr")]}
    found |= {SCGPT: scgpt_batch(cells, case, rng), TORCH: torch_batch(cells, case)}
    for name, (gene, expr, masked) in found.items():
        assert (gene[:, 0] == found[OURS][0][:, 0]).all(), name
        assert (expr[:, 1:] > 0).all(), name
        share = (masked == MASK_VALUE).float().sum() / (gene.shape[0] * (gene.shape[1] - 1))
        assert abs(share - P) < 0.05, f"{name} hides {share:.2f}"
        for row in range(2):
            raw = dict(zip(cells[row]["genes"].tolist(), cells[row]["expressions"].tolist(), strict=True))
            pairs = sorted((raw[g], v) for g, v in zip(gene[row, 1:].tolist(), expr[row, 1:].tolist(), strict=True))
            rising = [value for _, value in pairs]
            steps = [b - a for (x, a), (y, b) in pairwise(pairs) if y > x]
            assert case == "bins" or rising == sorted(rising), name
            assert not steps or min(steps) > -1e-4, f"{name}: a larger value has a smaller one"


def measure(bench: Bench, case: str, n: int, batch: int) -> None:
    """Time one transform for cells of ``n`` genes."""
    rng, names = np.random.default_rng(n), tuple(f"G{i}" for i in range(N_GENES))
    vocabulary = Vocabulary(("<pad>", "<mask>", "<cls>", *names))
    ids = np.concatenate([rng.permutation(N_GENES)[:n] + 3 for _ in range(batch)]).astype(np.int32)
    counts = (1 + rng.poisson(rng.gamma(0.3, 3, ids.size))).astype(np.float32)
    ragged = RaggedBatch(np.arange(batch + 1) * n, ids, vocabulary, values=counts)
    cls = torch.tensor([vocabulary.cls_token_id]), torch.tensor([0.0])
    cells = [
        {
            "genes": torch.cat([cls[0], torch.from_numpy(ids[i * n : (i + 1) * n]).long()]),
            "expressions": torch.cat([cls[1], torch.from_numpy(counts[i * n : (i + 1) * n])]),
        }
        for i in range(batch)
    ]
    masker = RandomMasker(vocabulary, mlm_probability=P, mask_replace_prob=1.0, random_replace_prob=0.0)
    collator = DataCollatorForValues.scgpt(masker, max_length=LONGEST, transform=case)
    check(collator, ragged, cells, case)
    ways: dict[str, Callable[[], Any]] = {
        SCGPT: lambda: scgpt_batch(cells, case, rng),
        TORCH: lambda: torch_batch(cells, case),
        OURS: lambda: collator(ragged),
        AS_LISTS: lambda: collator(cells),
    }
    contestants = [Contestant(name, run, batch) for name, run in ways.items()]
    bench.race(f"{case} {n}", batch, contestants, more={"genes_a_cell": n})


def main() -> None:
    """Check, time, print, record."""
    parser = parser_of(__doc__, "values.csv", CASES, rounds=9)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    bench = Bench(arguments, GOALS, {"longest": LONGEST, "masked": P})
    for n in (60,) if arguments.smoke else EXPRESSED:
        for case in arguments.cases:
            measure(bench, case, n, 8 if arguments.smoke else arguments.batch)
    bench.finish()


if __name__ == "__main__":
    main()
