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
import argparse
import time
from typing import TYPE_CHECKING, Any

import records

from graph import goals, growth, shapes
from graph.child import measure
from graph.goals import MKL, OURS, SCIPY, SGEMM
from graph.peers import PEERS, SIZES, missing
from graph.streaming import STREAMED, STREAMED_SMOKE, build_watched, made_up_corpus_folder

if TYPE_CHECKING:
    from graph.shapes import Shape

ROOT = BENCH.parent
RESULTS = records.RESULTS.with_name("graph.csv")
PICTURE = records.RESULTS.with_name("graph_growth.png")
PARTS = ("goals", "peers", "overlap", "threads", "growth", "streaming", "rates")
SMOKE_PARTS = ("goals", "peers", "overlap", "growth", "streaming")
PACKAGES = ("corrmask-fast", "numpy", "scipy", "numba", "torch")
GROWTH = tuple((cells, genes) for cells in (10_000, 30_000, 100_000) for genes in (2_000, 8_000, 25_000))
PANDAS = "pandas corr"


class Bench:
    """What the parts share: the corpora, the settings, and the rows so far."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.smoke, self.python = arguments.smoke, arguments.peers_python
        self.limit_s, self.threads, self.sizes = arguments.minute, arguments.threads, arguments.sizes
        self.keep = arguments.keep
        self.shapes = shapes.SMOKE if self.smoke else shapes.SHAPES
        self.min_cooccurrence = 20 if self.smoke else 200
        self.peers = ("NumPy corrcoef of ranks",) if self.smoke else tuple(PEERS)
        self.rows: list[records.Row] = []

    def add(self, case: str, contestant: str, threads: int, found: dict[str, Any], **more: Any) -> None:
        """Keep a row, and say it."""
        found = found | more
        columns = ("n_cells", "n_genes", "seconds", "cpu_seconds", "peak_gib", "largest_error", "n_edges")
        row = {"case": case, "contestant": contestant, "threads": threads}
        row |= {name: _rounded(found.get(name)) for name in columns} | {
            "note": found.get("error", found.get("note", ""))
        }
        self.rows.append(row)
        said = ", ".join(f"{name} {value}" for name, value in row.items() if value not in ("", None) and name != "case")
        print(f"{case}: {said}", flush=True)

    def begin(self, case: str, contestant: str) -> None:
        """Say what is measured now: some of it takes minutes."""
        print(f"{case}: measuring {contestant} …", flush=True)

    def ours(self, part: str, shape: Shape, *, threads: int | None = None, **what: Any) -> dict[str, Any]:
        """Measure our side on a kept corpus."""
        corpus = shapes.corpus_file(shape, self.keep)
        return self.child(part, corpus, threads=threads, min_cooccurrence=self.min_cooccurrence, **what)

    def child(self, part: str, corpus: Path, *, threads: int | None = None, **what: Any) -> dict[str, Any]:
        """Run a part of ours.py; a failure of ours ends the run."""
        threads = threads or self.threads
        found = measure("ours.py", threads=threads, limit_s=600, part=part, corpus=corpus, **what)
        if "error" in found:
            raise SystemExit(f"our own part {part} on {corpus.name} failed: {found['error']}")
        return found

    def peer(self, name: str, path: Path, *, all_genes: bool) -> dict[str, Any]:
        """Measure a peer: in this environment, or in the other one if this lacks it."""
        python = self.python if missing(name) else sys.executable
        what = {"peer": name, "input": path, "all_genes": all_genes, "most_genes": None}
        while True:
            found = measure("peers.py", python, threads=self.threads, limit_s=self.limit_s, **what)
            smaller = [size for size in SIZES if size < found.get("n_genes", 0)]
            if all_genes or not smaller or "too_long" not in found:
                return found
            what["most_genes"] = smaller[-1]  # it was estimated to fit, and did not

    def peer_input(self, shape: Shape) -> Path:
        """Return the file that peers read a corpus from, made where it is not kept yet."""
        corpus_file = shapes.corpus_file(shape, self.keep)
        path = corpus_file.with_name(f"{corpus_file.stem}-peers.npz")
        if not path.exists():
            shapes.write_peer_input(path, *shapes.columns_of(shapes.load(corpus_file)))
        return path

    # ------------------------------------------------------------------------------------------------------ parts

    def goals(self) -> None:
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

    def peers_(self) -> None:
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

    def overlap(self) -> None:
        """Pairs a second of the overlap step, on one core once the pairs are known."""
        sizes = {"overlaps": [100, 400], "pairs": 20, "scipy_pairs": 5, "repeats": 1}
        if not self.smoke:
            sizes = {"overlaps": [200, 2_000, 20_000], "pairs": 1_000, "scipy_pairs": 200, "repeats": 5}
        for row in self.ours("overlap", self.shapes["big"], **sizes)["rows"]:
            case, error = row["case"], {"largest_error": row["largest_error"]}
            self.add(case, OURS, 1, {"seconds": 1 / row["ours"], "note": row["note"]})
            self.add(case, SCIPY, 1, {"seconds": 1 / row["scipy"]} | error)
            self.add(case, "SciPy spearmanr, overlap given", 1, {"seconds": 1 / row["scipy_alone"]})

    def streaming(self) -> None:
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

    def threads_(self) -> None:
        """One thread beside two."""
        for threads, name in ((1, f"{OURS}, 1 thread"), (2, OURS)):
            self.begin("threads", name)
            self.add("threads", name, threads, self.ours("build", self.shapes["d12k"], threads=threads, repeats=3))

    def growth(self) -> None:
        """Builds of growing parts of the largest corpus."""
        parts = ((300, 100), (900, 100), (900, 400)) if self.smoke else GROWTH
        for row in self.ours("growth", self.shapes["big"], parts=parts)["rows"]:
            # The sizes asked for: at 10 000 cells some genes are in too few of them and drop out.
            self.add("growth", OURS, self.threads, row, n_cells=row["cells"], n_genes=row["genes"])
        rows = [row for row in self.rows if row["case"] == "growth"]
        found = growth.draw(rows, self.keep / "graph_growth.png" if self.smoke else PICTURE)
        print(f"time grows as cells^{found.cells_power:.2f} · genes^{found.genes_power:.2f}")

    def rates(self) -> None:
        """Say the rates of the methods, which the plan of a product is made with."""
        n_genes = 200 if self.smoke else 6_000
        for method, rate in self.ours("rates", self.shapes["d12k"], threads=1, n_genes=n_genes)["rates"].items():
            self.add("rates", f"{method}, 10^9 products", 1, {"seconds": 1e9 / rate})


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else "" if value is None else value


def main() -> None:
    """Run what the arguments ask for."""
    arguments = _arguments()
    bench = Bench(arguments)
    began = time.perf_counter()
    for part in arguments.parts:
        {"peers": bench.peers_, "threads": bench.threads_}.get(part, getattr(bench, part, None))()
    print(f"\n{goals.goal_table(bench.rows)}\n")
    if "peers" in arguments.parts:
        cells = bench.shapes["d12k"].n_cells
        print(f"Peers at the largest size they manage in {bench.limit_s:g} s, of {cells:,} cells:\n")
        print(f"{goals.peer_table(bench.rows)}\n")
    described = {"density": bench.shapes["big"].density, "seconds_of_bench": round(time.perf_counter() - began)}
    shared = records.conditions(described, 1, 0.0, PACKAGES)
    print(f"{shared['cores']} cores of {shared['device']}, load {shared['load']}, commit {shared['commit']}")
    if bench.smoke:
        print("A smoke run: nothing is recorded, and the figures mean nothing.")
    elif not arguments.dry:
        records.append([row | shared for row in bench.rows], RESULTS)
        print(f"{len(bench.rows)} rows appended to {RESULTS.relative_to(ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all")
    parser.add_argument("--sizes", nargs="+", choices=list(shapes.SHAPES), default=list(shapes.SHAPES))
    parser.add_argument("--minute", type=float, default=60.0, help="seconds that a peer may take (default: 60)")
    parser.add_argument("--threads", type=int, default=2, help="of everybody (default: 2)")
    parser.add_argument("--dry", action="store_true", help="print, but record nothing")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything run, and agree?")
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that runs the peers")
    parser.add_argument("--keep", type=Path, default=ROOT / "build" / "bench", help="where corpora are kept")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.parts, arguments.sizes = SMOKE_PARTS, ["d4k"]
    return arguments


if __name__ == "__main__":
    main()
