"""Check, time and record graph building: ``python bench/graph/run.py`` prints tables, appends to results/graph.csv.

Everything is measured in processes of their own, one after the other. Peers that are not installed are named and
skipped; ``--peers-python`` takes the interpreter of an environment that has them (NumPy and SciPy, and the peer).
"""

from __future__ import annotations

import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(BENCH)  # the folder of benches, in place of this one: `graph` is a package in it

# ruff: noqa: E402
import time
from typing import TYPE_CHECKING, Any

from harness.bench import Bench, parser_of
from harness.goals import Goal, markdown, time_text
from harness.records import RESULTS

from graph import growth, shapes
from graph.child import measure
from graph.peers import PEERS, SIZES, missing
from graph.streaming import STREAMED, STREAMED_SMOKE, build_watched, made_up_corpus_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from harness.records import Row

    from graph.shapes import Shape

PICTURE = RESULTS / "graph_growth.png"
CASES = ("goals", "peers", "overlap", "threads", "growth", "streaming", "rates")
SMOKE_CASES = ("goals", "peers", "overlap", "growth", "streaming")
PACKAGES = ("corrmask-fast", "numpy", "scipy", "numba", "torch")
GROWTH = tuple((cells, genes) for cells in (10_000, 30_000, 100_000) for genes in (2_000, 8_000, 25_000))
OURS, SGEMM = "corrmask-fast", "dense SGEMM at peak, product alone"
SCIPY, MKL, PANDAS = "SciPy spearmanr", "MKL sparse Gram, product alone", "pandas corr"
GOALS = (
    Goal("25 000 genes × 100 000 cells", "big", OURS, (SGEMM,), at_least=6),
    Goal("12 000 genes × 20 000 cells", "d12k", OURS, (MKL,), at_least=4),
    Goal("4 000 genes × 20 000 cells", "d4k", OURS, (SCIPY,), at_least=15),
    Goal("overlap Spearman, overlap 200", "overlap 200", OURS, (SCIPY,), at_least=100),
    Goal("overlap Spearman, overlap 2 000", "overlap 2000", OURS, (SCIPY,), at_least=100),
    Goal("overlap Spearman, overlap 20 000", "overlap 20000", OURS, (SCIPY,), at_least=100),
    Goal("2 threads beside 1, 12 000 × 20 000", "threads", OURS, (f"{OURS}, 1 thread",), at_least=1.8),
    Goal("memory of 25 000 × 100 000", "big", OURS, at_most=6, unit="GiB"),
)


class GraphBench(Bench):
    """What the cases share: the corpora, the settings, and the rows so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.python, self.limit_s = arguments.peers_python, arguments.minute
        self.threads, self.sizes, self.keep = arguments.threads, arguments.sizes, arguments.keep
        self.shapes = shapes.SMOKE if arguments.smoke else shapes.SHAPES
        self.min_cooccurrence = 20 if arguments.smoke else 200
        self.peers = ("NumPy corrcoef of ranks",) if arguments.smoke else tuple(PEERS)
        described = {"first_call_s": 0.0, "density": self.shapes["big"].density, "seconds_of_bench": 0}
        super().__init__(arguments, GOALS, described, packages=PACKAGES, how="Quickest of 1 to 5 calls")
        self.rounds = self.shared["rounds"] = 1

    def add(self, case: str, contestant: str, threads: int, found: dict[str, Any], **more: Any) -> None:
        """Keep a row, and print it."""
        found = found | more
        columns = ("n_cells", "n_genes", "seconds", "cpu_seconds", "peak_gib", "largest_error", "n_edges")
        row = {"case": case, "contestant": contestant, "threads": threads}
        row |= {name: _rounded(found.get(name)) for name in columns} | {
            "note": found.get("error", found.get("note", ""))
        }
        self.rows.append(row)
        values = [f"{name} {value}" for name, value in row.items() if value not in ("", None) and name != "case"]
        print(f"{case}: {', '.join(values)}", flush=True)

    def begin(self, case: str, contestant: str) -> None:
        """Print what is measured now: some of it takes minutes."""
        print(f"{case}: measuring {contestant} …", flush=True)

    def ours(self, part: str, shape: Shape, *, threads: int | None = None, **what: Any) -> dict[str, Any]:
        """Measure our side on a kept corpus."""
        corpus = shapes.corpus_file(shape, self.keep)
        return self.child(part, corpus, threads=threads, min_cooccurrence=self.min_cooccurrence, **what)

    def child(self, part: str, corpus: Path, *, threads: int | None = None, **what: Any) -> dict[str, Any]:
        """Run a part of ours.py; a failure of ours ends the bench."""
        threads = threads or self.threads
        found = measure("ours.py", threads=threads, limit_s=600, part=part, corpus=corpus, **what)
        if "error" in found:
            raise SystemExit(f"our own part {part} on {corpus.name} failed: {found['error']}")
        return found

    def peer(self, name: str, path: Path, *, all_genes: bool) -> dict[str, Any]:
        """Measure a peer: in this environment, or in the other one if this lacks it."""
        python = self.python if missing(name) else sys.executable
        what = {"peer": name, "input": path, "all_genes": all_genes, "max_genes": None}
        while True:
            found = measure("peers.py", python, threads=self.threads, limit_s=self.limit_s, **what)
            smaller = [size for size in SIZES if size < found.get("n_genes", 0)]
            if all_genes or not smaller or "too_long" not in found:
                return found
            what["max_genes"] = smaller[-1]  # it was estimated to fit, and did not

    def peer_input(self, shape: Shape) -> Path:
        """Return the file that peers read a corpus from, made where it is not kept yet."""
        corpus_file = shapes.corpus_file(shape, self.keep)
        path = corpus_file.with_name(f"{corpus_file.stem}-peers.npz")
        if not path.exists():
            shapes.write_peer_input(path, *shapes.columns_of(shapes.load(corpus_file)))
        return path

    # ------------------------------------------------------------------------------------------------------ cases

    def run_goals(self) -> None:
        """Measure the sizes of the goals against the peers that they name."""
        for name in self.sizes:
            shape = self.shapes[name]
            repeats = 1 if name == "big" else 3
            self.begin(name, OURS)
            ours = self.ours("build", shape, repeats=repeats, error=name != "big")
            self.add(name, OURS, self.threads, ours)
            if name == "big":
                n = 512 if self.smoke else 6144
                flops = measure("peers.py", threads=self.threads, limit_s=60, peer="SGEMM", n=n)["flops"]
                # A multiplication and an addition for every cell and every pair of genes: half of the square.
                seconds = ours["n_cells"] * ours["n_genes"] ** 2 / flops
                size = {"n_cells": ours["n_cells"], "n_genes": ours["n_genes"], "seconds": seconds}
                self.add(name, SGEMM, self.threads, size)
            else:
                peer = MKL if name == "d12k" else SCIPY
                self.begin(name, peer)
                self.add(name, peer, self.threads, self.peer(peer, self.peer_input(shape), all_genes=True))

    def run_peers(self) -> None:
        """Run every peer at the largest size it manages, and ours at the same sizes."""
        shape = self.shapes["d12k"]
        path = self.peer_input(shape)
        for name in self.peers:
            if not self.again("d12k", name):
                self.begin("peers", name)
                # pandas correlates pair by pair in one thread.
                self.add("peers", name, 1 if name == PANDAS else self.threads, self.peer(name, path, all_genes=False))
        of_peers = [row for row in self.rows if row["case"] == "peers" and row["seconds"]]
        for n_genes in sorted({row["n_genes"] for row in of_peers}):
            if not self.again("d12k", OURS, n_genes):
                self.begin("peers", f"{OURS}, {n_genes} genes")
                # The columns that the peers had; all of them, if that is how many there are.
                found = self.ours("build", shape, n_genes=n_genes, first_genes=True, repeats=2, error=True)
                self.add("peers", OURS, self.threads, found)

    def again(self, case: str, contestant: str, n_genes: int | None = None) -> bool:
        """Take a row of another case for one of the peers' as well, if it was measured in this run."""
        found = [row for row in self.rows if (row["case"], row["contestant"]) == (case, contestant) and row["seconds"]]
        found = [row | {"case": "peers"} for row in found if n_genes in {None, row["n_genes"]}]
        self.rows += found
        return bool(found)

    def run_overlap(self) -> None:
        """Pairs a second of the overlap step, on one core once the pairs are known."""
        sizes = {"overlaps": [100, 400], "pairs": 20, "scipy_pairs": 5, "repeats": 1}
        if not self.smoke:
            sizes = {"overlaps": [200, 2_000, 20_000], "pairs": 1_000, "scipy_pairs": 200, "repeats": 5}
        for row in self.ours("overlap", self.shapes["big"], **sizes)["rows"]:
            case, error = row["case"], {"largest_error": row["largest_error"]}
            self.add(case, OURS, 1, {"seconds": 1 / row["ours"], "note": row["note"]})
            self.add(case, SCIPY, 1, {"seconds": 1 / row["scipy"]} | error)
            self.add(case, "SciPy spearmanr, overlap given", 1, {"seconds": 1 / row["scipy_alone"]})

    def run_streaming(self) -> None:
        """Graphs of all cells of growing corpora on disk, in equal memory; the smallest also in memory as a whole."""
        sizes, limit = (STREAMED_SMOKE, "150MB") if self.smoke else (STREAMED, "300MB")
        threads = ["--threads", str(self.threads)]
        for shape in sizes:
            self.begin("streaming", f"{OURS}, {shape.n_cells} cells on disk, made first")
            size = {"n_cells": shape.n_cells, "n_genes": shape.n_genes}
            with made_up_corpus_folder(shape, self.keep) as corpus:
                whole, streamed = (corpus.with_name(f"{name}.safetensors") for name in ("whole", "streamed"))
                if shape is sizes[0]:
                    self.child("streamed_check", corpus)
                    found = build_watched(corpus, whole, threads)
                    self.add("streaming", f"{OURS}, in memory", self.threads, found | size)
                found = build_watched(corpus, streamed, [*threads, "--memory", limit])
                if shape is sizes[0] and whole.read_bytes() != streamed.read_bytes():
                    raise SystemExit(f"the graph of {shape.n_cells} cells in chunks is another than in memory")
                n_edges = min(5, max(1, 15_000_000 // shape.n_cells))  # SciPy sorts all cells for each
                checked = self.child("edges", corpus, graph=streamed, edges=n_edges)
                self.add("streaming", f"{OURS}, --memory {limit}", self.threads, found | size | checked)

    def run_threads(self) -> None:
        """One thread beside two."""
        for threads, name in ((1, f"{OURS}, 1 thread"), (2, OURS)):
            self.begin("threads", name)
            self.add("threads", name, threads, self.ours("build", self.shapes["d12k"], threads=threads, repeats=3))

    def run_growth(self) -> None:
        """Builds of growing parts of the largest corpus."""
        parts = ((300, 100), (900, 100), (900, 400)) if self.smoke else GROWTH
        for row in self.ours("growth", self.shapes["big"], parts=parts)["rows"]:
            # The sizes asked for: at 10 000 cells some genes are in too few of them and drop out.
            self.add("growth", OURS, self.threads, row, n_cells=row["cells"], n_genes=row["genes"])
        rows = [row for row in self.rows if row["case"] == "growth"]
        found = growth.draw(rows, self.keep / PICTURE.name if self.smoke else PICTURE)
        print(f"time grows as cells^{found.cells_power:.2f} · genes^{found.genes_power:.2f}")

    def run_rates(self) -> None:
        """Measure the rates of the methods, which the plan of a product is made with."""
        n_genes = 200 if self.smoke else 6_000
        for method, rate in self.ours("rates", self.shapes["d12k"], threads=1, n_genes=n_genes)["rates"].items():
            self.add("rates", f"{method}, 10^9 products", 1, {"seconds": 1e9 / rate})


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else "" if value is None else value


def peer_table(rows: Sequence[Row]) -> str:
    """Return every peer at its largest size, with ours at the same size."""
    ours = {int(row["n_genes"]): row for row in rows if row["case"] == "peers" and row["contestant"] == OURS}
    lines = [["peer", "genes", "time", "peak GiB", "largest error", "ours", "our peak GiB", "ratio", ""]]
    for row in rows:
        if row["case"] != "peers" or row["contestant"] == OURS:
            continue
        if not row["seconds"]:
            lines.append([row["contestant"], *[""] * 7, row["note"]])
            continue
        mine, seconds = ours.get(int(row["n_genes"])), float(row["seconds"])
        error = f"{float(row['largest_error']):.0e}" if row["largest_error"] not in ("", None) else ""
        line = [
            row["contestant"],
            f"{int(row['n_genes']):,}",
            time_text(1e6 * seconds),
            f"{float(row['peak_gib']):.2f}",
        ]
        beside = ["", "", ""]
        if mine:
            own = float(mine["seconds"])
            beside = [time_text(1e6 * own), f"{float(mine['peak_gib']):.2f}", f"{seconds / own:.1f}x"]
        lines.append([*line, error, *beside, ""])
    return markdown(lines)


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    bench = GraphBench(arguments)
    began = time.perf_counter()
    for case in arguments.cases:
        getattr(bench, f"run_{case}")()
    if "peers" in arguments.cases:
        cells = bench.shapes["d12k"].n_cells
        print(f"\nPeers at the largest size they manage in {bench.limit_s:g} s, of {cells:,} cells:\n")
        print(peer_table(bench.rows))
    bench.shared["seconds_of_bench"] = round(time.perf_counter() - began)
    bench.rows = [row | bench.shared for row in bench.rows]
    bench.finish()


def _arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, "graph.csv", CASES)
    parser.add_argument("--sizes", nargs="+", choices=list(shapes.SHAPES), default=list(shapes.SHAPES))
    parser.add_argument("--minute", type=float, default=60.0, help="seconds that a peer may take (default: 60)")
    parser.add_argument("--threads", type=int, default=2, help="of ours and of the peers (default: 2)")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that runs the peers")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.cases, arguments.sizes = SMOKE_CASES, ["d4k"]
    return arguments


if __name__ == "__main__":
    main()
