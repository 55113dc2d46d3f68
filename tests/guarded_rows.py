"""Masking with each array of the kernel between pages that nobody may touch; test_memory.py runs this as a process.

    no access │ pattern … pattern │ array │ no access

An array ends where a page ends: who reads or writes after it ends the process. In front of it, and in what the kernel
is given undefined, lies a pattern that no result may depend on. The scratch has the sizes that engine/rows.py gives it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import sys

import numpy as np
import torch

from corrmask_fast import Vocabulary
from corrmask_fast.kernels.layout import (
    BALANCED,
    CONTENT,
    CORRMASK,
    COUNTED,
    FUNCTION,
    GENE_SETS,
    GIVEN,
    PMI,
    RANDOM,
    SAMPLED,
    SPAN,
    Settings,
)
from corrmask_fast.masking.engine import rows
from corrmask_fast.masking.engine.draws import Draws
from corrmask_fast.masking.engine.rows import CpuPlan, make_plan, mask_rows
from corrmask_fast.masking.engine.tables import table_of_pairs, table_of_sets
from corrmask_fast.threads import set_num_threads

LENGTHS = (*range(1, 131), *range(2047, 2051))
DEGREES = (*range(301), 960, 961, 1023, 1024, 1025)  # the first genes' numbers of neighbours; the last ones are hubs
SPECIAL, N_GENES = 2, 2098
SIZE = SPECIAL + N_GENES  # no multiple of 64: bits of genes end inside a word
PARTNERS = (0, 1, 5, 40, 400)
RATES = ((0.15, 0.15, 0.5, 0.5), (0.95, 0.95, 1.0, 1.0), (0.3, 0.9, 0.2, 0.8))
PATTERN = 0xA5
# Of the scratch, what the kernel finds filled: the gene table's base, the pace, the gene table. The rest is undefined.
FILLED = 3
ROOM = 2**19  # bytes of an array, at most
PAGE = mmap.PAGESIZE


class Guards:
    """Guarded memory by name, for one array each."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[mmap.mmap, np.ndarray]] = {}
        self.fronts: dict[str, np.ndarray] = {}

    def _place(self, name: str) -> np.ndarray:
        if name not in self.places:
            memory = mmap.mmap(-1, PAGE + ROOM + PAGE)
            place = np.frombuffer(memory, np.uint8)
            for closed in (place.ctypes.data, place.ctypes.data + PAGE + ROOM):
                if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(closed), ctypes.c_size_t(PAGE), 0):
                    raise OSError(ctypes.get_errno(), "mprotect")
            self.places[name] = memory, place[PAGE : PAGE + ROOM]
        return self.places[name][1]

    def hold(self, name: str, array: np.ndarray, *, filled: bool = True) -> np.ndarray:
        """Return an array of this one's shape that ends at a guard: a copy, or not filled."""
        place = self._place(name)
        begin = ROOM - array.nbytes
        place[max(0, begin - PAGE) :] = PATTERN
        self.fronts[name] = place[max(0, begin - PAGE) : begin]
        held = place[begin:].view(array.dtype).reshape(array.shape)
        if filled:
            held[...] = array
        return held

    def check_fronts(self) -> None:
        """End with a message if anything was written in front of an array."""
        for name, front in self.fronts.items():
            if not (front == PATTERN).all():
                sys.exit(f"{name} was written to in front of its begin")


class GuardedScratch:
    """Stands in for the scratch of engine/rows.py: made anew for each call, guarded."""

    def __init__(self, guards: Guards, entry: type) -> None:
        self.guards, self.entry = guards, entry

    def ready(self, plan: CpuPlan, columns: int) -> tuple[np.ndarray, ...]:
        """Return the arrays in the kernel's order; what is uint16 (the gene table, looked) with the type to test."""
        return tuple(
            self.guards.hold(
                f"scratch array {i}",
                array.astype(self.entry) if array.dtype == np.uint16 else array,
                filled=i < FILLED,
            )
            for i, array in enumerate(rows._Scratch().ready(plan, columns))
        )


def make_plans() -> dict[str, CpuPlan]:
    """Plans of every strategy over one vocabulary; a few genes have the degrees to test, the others some."""
    rng = np.random.default_rng(0)
    genes = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(N_GENES))))
    degrees = np.concatenate([[0] * SPECIAL, DEGREES, rng.integers(0, 60, N_GENES - len(DEGREES))])
    near = [len(DEGREES) if gene % 2 and degree < 300 else N_GENES for gene, degree in enumerate(degrees)]
    indices = [np.sort(SPECIAL + rng.permutation(n)[:degree]) for n, degree in zip(near, degrees, strict=True)]
    graph = (
        np.zeros(1, np.uint64),
        np.concatenate([[0], degrees.cumsum()]).astype(np.int32),
        np.concatenate(indices).astype(np.uint16),
    )
    followers = [np.arange(gene + 1, min(gene + 4, SIZE)) for gene in range(SIZE)]
    starts = np.concatenate([[0], np.cumsum([row.size for row in followers])])
    pairs = table_of_pairs(starts, np.concatenate(followers).astype(np.uint16), "")[:3]
    sizes = np.where(np.arange(333) % 9 == 8, 0, rng.integers(2, 90, 333))  # the last word of sets is not full
    sizes[5] = N_GENES
    members = [np.sort(SPECIAL + rng.permutation(N_GENES)[:size]) for size in sizes]
    sets = table_of_sets(np.concatenate([[0], sizes.cumsum()]), np.concatenate(members), "")[:3]
    nothing = np.zeros(1, np.uint64), np.zeros(SIZE + 1, np.int32), np.empty(0, np.uint16)
    kinds = {
        **{f"corrmask with {most} partners": (CORRMASK, graph, most) for most in PARTNERS},
        "random": (RANDOM, nothing, 0), "span": (SPAN, nothing, 0), "pmi": (PMI, pairs, 0),
        "weighted": (RANDOM, nothing, 0), "weighted corrmask": (CORRMASK, graph, 5),
        "sampled": (SAMPLED, nothing, 0), "balanced": (BALANCED, graph, 0), "function": (FUNCTION, nothing, 0),
        "gene sets": (GENE_SETS, sets, 0),
    }  # fmt: skip
    lo, hi = genes.gene_range
    return {
        name: make_plan(
            torch.tensor([5]), torch.zeros(4, dtype=torch.int64), torch.from_numpy(table[0].view(np.int64)),
            torch.from_numpy(table[1]), torch.from_numpy(table[2].astype(np.int32)),
            *(torch.from_numpy(rng.integers(2**11, 2**31, n * name.startswith("weighted")).astype(np.int32))
              for n in (SIZE + 1, table[2].size)),
            Settings(0, 1, lo, hi, SIZE, most, int(0.8 * 2**32), int(0.9 * 2**32), max(DEGREES), strategy), 0.95,
        )
        for name, (strategy, table, most) in kinds.items()
    }  # fmt: skip


def make_batch(rng: np.random.Generator, length: int, number: int) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Two rows, the second of which is shorter, and (in turns) what else may be given with them."""
    row_ptr = np.cumsum([0, length, length // 2])
    genes = N_GENES if length > len(DEGREES) else len(DEGREES)
    cell = SPECIAL + rng.permutation(genes)[:length]
    if number % 5 == 1:  # tokens of no vocabulary: just after it, and far away
        cell[rng.integers(0, length, 3)] = (SIZE, SIZE + 40, -7)
    if number % 5 == 2:
        cell = np.sort(cell)  # long runs of pairs
    tokens = np.concatenate([cell, cell[: length // 2]])
    if number % 7 == 1:  # padding by token, at both ends
        tokens[[0, length - 1, -1]] = 0
    more: dict[str, np.ndarray] = {"out_attention": np.empty((2, length), np.int64)} if number % 2 else {}
    if number % 3 == 1:
        more["attention_mask"] = (rng.random(tokens.size) < 0.9).astype(np.uint8)
    if number % 3 == 2:
        more["special_tokens_mask"] = (rng.random(tokens.size) < 0.2).astype(np.uint8)
    if number % 4 == 3:
        more["graph_ids"] = np.zeros(2, np.int64)
    return [row_ptr, tokens], more


def mask_guarded(guards: Guards, plan: CpuPlan, entry: type, batch: list[np.ndarray], draws: Draws,
                 more: dict[str, np.ndarray], *, packed: bool) -> list[np.ndarray]:  # fmt: skip
    """Mask a batch with guarded arrays alone; return the outputs."""
    rates, row_ptr, tokens, *outputs = batch
    index = np.uint16 if entry is np.uint16 else np.int32
    held = [guards.hold(f"output {i}", output, filled=False) for i, output in enumerate(outputs)]
    given = {name: guards.hold(name, array, filled=name != "out_attention") for name, array in more.items()}
    hold = guards.hold
    plan = plan._replace(
        ids=hold("ids", plan.ids.astype(index)), lookup=hold("lookup", plan.lookup), indptr=hold("indptr", plan.indptr),
        indices=hold("indices", plan.indices.astype(index)), costs=hold("costs", plan.costs),
        edge_costs=hold("edge costs", plan.edge_costs), settings=hold("settings", plan.settings),
        seed=hold("seed", plan.seed), rates=hold("rates", rates),
    )  # fmt: skip
    scratch, rows._scratch = rows._scratch, GuardedScratch(guards, entry)
    try:
        mask_rows(
            plan, hold("row_ptr", row_ptr), hold("tokens", tokens),
            draws._replace(values=hold("draws", draws.values)), *held, packed=packed, **given,
        )  # fmt: skip
    finally:
        rows._scratch = scratch
    guards.check_fronts()
    return [*held, *([given["out_attention"]] if "out_attention" in given else [])]


def run(entry: type, ids: type) -> None:
    """Mask rows of all lengths by all strategies, and compare with what unguarded arrays give."""
    rng, guards, plans = np.random.default_rng(1), Guards(), make_plans()
    number = 0
    for length in LENGTHS:
        for name, plan in plans.items():
            number += 1
            sys.stdout.write(f"{name}, row of {length}, variant {number}\n")  # the last line tells where it ended
            sys.stdout.flush()
            rates = np.array(RATES[number % 3])
            (row_ptr, tokens), more = make_batch(rng, length, number)
            if name in {"sampled", "function"} or number % 11 == 5:
                more["priorities"] = rng.integers(0, 2**32, tokens.size)
            mode = (GIVEN, COUNTED, CONTENT)[number % 3]
            draws = Draws(rng.integers(0, 2**62, 2 if mode == GIVEN else 1), mode)
            positions = np.empty((2, int(length * rates[1])), np.int64)
            packed = number % 4 == 2
            shape = (1, tokens.size) if packed else (2, length)
            outputs = [np.empty(shape, np.int64), np.empty(shape, np.int64), positions]
            batch = [rates, row_ptr, tokens.astype(ids), *outputs]
            guarded = mask_guarded(guards, plan, entry, batch, draws, more, packed=packed)
            mask_rows(plan._replace(rates=rates), *batch[1:3], draws, *outputs, packed=packed, **more)
            for free, held in zip(
                [*outputs, *([more["out_attention"]] if "out_attention" in more else [])], guarded, strict=True
            ):
                np.testing.assert_array_equal(held, free)


def trespass(step: int) -> None:
    """Write one byte in front of a guarded array, or after it."""
    guards = Guards()
    array = guards.hold("trodden", np.zeros(100, np.uint8))
    ctypes.memset(array.ctypes.data + step, 0, 1)
    guards.check_fronts()


if __name__ == "__main__":
    faulthandler.enable()
    set_num_threads(1)
    {
        "uint16": lambda: run(np.uint16, np.int64),
        "int32": lambda: run(np.int32, np.int32),
        "before": lambda: trespass(-1),
        "after": lambda: trespass(100),
    }[sys.argv[1]]()
