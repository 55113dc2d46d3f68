"""Every strategy beside Random, and beside the same strategy in plain PyTorch: ``python bench/strategies.py``.

Checked against the oracle, then timed in turns; rows go to results/strategies.csv.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from harness.bench import Bench, parser_of
from harness.goals import Goal
from harness.parity import check_masker
from harness.timing import Contestant
from harness.workload import SMOKE, Size, make_workload
from torch_corrmask import TorchCorrMask

from corrmask_fast import PMITable, make_masker, set_num_threads
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.testing import Case

if TYPE_CHECKING:
    from harness.workload import Workload

STRATEGIES = ("random", "weighted", "span", "pmi", "pmi of rarer pairs", "corrmask", "corrmask-balanced", "gene-sets")
# How often a pair must be seen: the default; and for a table as large as that of many more cells than these.
MIN_COUNTS = {"pmi": 50, "pmi of rarer pairs": 5}


def plain(name: str) -> str:
    """Name the rival of a strategy."""
    return f"{name}, plain PyTorch"


# No plain version: how many times Random's time they may take.
OURS_ALONE = {"weighted": 2, "corrmask-balanced": 4, "gene-sets": 2}
GOALS = (
    *(Goal(name, "strategies", name, (plain(name),), at_least=1) for name in STRATEGIES if name not in OURS_ALONE),
    *(Goal(name, "strategies", name, ("random",), at_most=most) for name, most in OURS_ALONE.items()),
)


class TorchGroups:
    """Span or PMI masking of (rows, columns) int64 cells without padding, as it is mostly written: row by row."""

    def __init__(self, groups_of: Any, vocabulary: Any, p: float = 0.15) -> None:
        self.groups_of, self.p, self.stock = groups_of, p, stock_collator(vocabulary)
        self.mask_token = vocabulary.mask_token_id

    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.zeros(ids.shape, dtype=torch.bool)
        budget = int(ids.shape[1] * self.p)
        for row, cell in enumerate(ids):
            masked: dict[int, None] = {}
            groups = self.groups_of(cell)
            for k in torch.randperm(len(groups)).tolist():
                masked.update(dict.fromkeys(groups[k]))
                if len(masked) >= budget:
                    break
            if len(masked) < budget:
                masked.update(dict.fromkeys(torch.randperm(cell.numel()).tolist()))
            hidden[row, list(masked)[:budget]] = True
        labels = torch.where(hidden, ids, -100)
        chance = torch.rand(ids.shape)
        out = torch.where(hidden & (chance < 0.8), self.mask_token, ids)
        return torch.where(hidden & (chance >= 0.9), torch.randint_like(ids, 2, int(ids.max()) + 1), out), labels


def span_groups(cell: torch.Tensor) -> list[range]:
    """Return a span from every column."""
    n = cell.numel()
    weights = 0.8 ** torch.arange(10)
    lengths = torch.multinomial(weights, n, replacement=True) + 1
    return [range(c, min(c + length, n)) for c, length in enumerate(lengths.tolist())]


def run_groups(pairs: set[tuple[int, int]]) -> Any:
    """Return a function that finds the runs of a cell."""

    def groups(cell: torch.Tensor) -> list[list[int]]:
        tokens, runs = cell.tolist(), [[0]]
        for c in range(1, len(tokens)):
            if (tokens[c - 1], tokens[c]) in pairs:
                runs[-1].append(c)
            else:
                runs.append([c])
        return [run for run in runs if len(run) > 1]

    return groups


def pairs_of(table: PMITable) -> set[tuple[int, int]]:
    """Return the pairs that PMI masking masks together."""
    indptr, indices = table.at_least(0.1)
    first = np.repeat(np.arange(table.vocabulary.size), np.diff(indptr))
    return set(zip(first.tolist(), indices.tolist(), strict=True))


def gene_sets(workload: Workload, n: int = 2_000) -> dict[str, list[int]]:
    """Return sets of 10 to 200 genes, as Reactome has: most are small, and genes lie in several or in none."""
    lo, hi = workload.graph.vocabulary.gene_range
    rng = np.random.default_rng(0)
    genes = lo + rng.permutation(hi - lo)[: max(200, (hi - lo) * 2 // 5)]
    sizes = np.exp(rng.uniform(np.log(10), np.log(200), n)).astype(int)
    return {f"set {number}": rng.choice(genes, size, replace=False).tolist() for number, size in enumerate(sizes)}


def contestants(workload: Workload, tables: dict[str, PMITable], batch: int) -> list[Contestant]:
    """Return the plain versions, then ours; ours are checked first."""
    rows, graph = torch.from_numpy(workload.rows(batch)), workload.graph
    sets = gene_sets(workload)
    weights = {"weighted": {"weights": Case("weights", graph, rows.numpy()).weights}}
    maskers = {
        name: make_masker(name.split()[0], graph=graph, pmi=tables.get(name), sets=sets, **weights.get(name, {}))
        for name in STRATEGIES
    }
    for name, masker in maskers.items():
        check_masker(workload, batch, masker, strategy=name.split()[0], pairs=tables.get(name), sets=sets)
    stock, special = stock_collator(graph.vocabulary), torch.zeros(rows.shape, dtype=torch.bool)
    rivals = {
        "random": lambda ids: stock.torch_mask_tokens(ids.clone(), special),
        "span": TorchGroups(span_groups, graph.vocabulary),
        **{name: TorchGroups(run_groups(pairs_of(table)), graph.vocabulary) for name, table in tables.items()},
        "corrmask": TorchCorrMask(graph, torch.device("cpu")),
    }
    return [
        *(Contestant(plain(name), lambda rival=rival: rival(rows), batch) for name, rival in rivals.items()),
        *(Contestant(name, lambda masker=masker: masker(rows), batch) for name, masker in maskers.items()),
    ]


def main() -> None:
    """Check, time, print, record."""
    parser = parser_of(__doc__, "strategies.csv", ("strategies",), rounds=15)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_num_threads(1)
    workload = make_workload(SMOKE if arguments.smoke else Size(), arguments.keep)
    tables = {
        name: PMITable.from_corpus(workload.corpus, min_count=least, progress=False)
        for name, least in MIN_COUNTS.items()
    }
    described = {"first_call_s": 0.0, **workload.describe(), "pairs": tables["pmi"].n_pairs}
    bench = Bench(arguments, GOALS, described)
    batch = 4 if arguments.smoke else arguments.batch
    timings = bench.race("strategies", batch, contestants(workload, tables, batch), sample_ms=20.0)
    for name in STRATEGIES:
        print(f"{name:18} {timings[name].p50 / timings['random'].p50:5.2f} of Random's time")
    bench.finish()


if __name__ == "__main__":
    main()
