"""``corrmask-fast pmi``: build and describe tables of associated neighbours, for PMI masking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.cli.options import add_corpus, check_tensors_file, command, open_corpus, setting

if TYPE_CHECKING:
    import argparse

    from corrmask_fast.masking.pmi_table import PMITable


def add_pmi(commands: Any) -> None:
    """Add ``pmi build`` and ``pmi info``."""
    parser = commands.add_parser("pmi", help="tables of associated neighbours, for PMI masking")
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    build = command(
        group,
        "build",
        _build,
        summary="count neighbouring genes over a corpus",
        text="Count which genes stand next to each other in cells, and keep the ordered pairs seen often enough with "
        "their normalised pointwise mutual information (NPMI).",
        example="pmi build cells.dataset -o pmi.safetensors --min-count 50",
    )
    add_corpus(build)
    build.add_argument("-o", "--output", required=True, metavar="TABLE", help="file to write (.safetensors)")
    setting(build, "--min-count", 50, "N", "smallest number of times that a pair is seen")
    build.add_argument("--n-cells", type=int, metavar="N", help="count a sample of so many cells (default: all)")
    setting(build, "--seed", 0, "N", "seed of the sample of cells")
    info = command(
        group,
        "info",
        _info,
        summary="size, NPMI and parameters of a table",
        text="Describe a PMI table: pairs, NPMI, the strongest pairs, and how it was made.",
        example="pmi info pmi.safetensors -n 20",
        computes=False,
    )
    info.add_argument("table", metavar="TABLE", help="PMI table file")
    info.add_argument(
        "-n", type=int, default=10, metavar="N", help="show so many pairs (default: %(default)s; 0: none)"
    )


def _build(arguments: argparse.Namespace) -> None:
    from corrmask_fast.masking.pmi_table import PMITable

    check_tensors_file(arguments, "a PMI table file")  # before the work
    table = PMITable.from_corpus(
        open_corpus(arguments),
        min_count=arguments.min_count,
        n_cells=arguments.n_cells,
        seed=arguments.seed,
        progress=arguments.progress,
    )
    table.save(arguments.output)
    print(summary_table(table, 0))
    print(f"saved to {arguments.output}")


def _info(arguments: argparse.Namespace) -> None:
    from corrmask_fast.errors import check_integer
    from corrmask_fast.masking.pmi_table import PMITable

    print(summary_table(PMITable.load(arguments.table), check_integer("-n", arguments.n, 0)))


def summary_table(table: PMITable, n_pairs: int) -> str:
    """Return what a table holds, a line for each fact, and its strongest pairs."""
    from corrmask_fast.tables import align

    facts = table.summary()
    quantiles = facts.get("npmi_quantiles")
    rows = [["genes that begin a pair", f"{facts['genes']:,}"], ["pairs", f"{facts['pairs']:,}"]]
    if quantiles:
        spread = "  ".join(f"{value:+.3f}" for value in quantiles)
        rows.append(["NPMI", f"{spread}  (minimum, quartiles, maximum)"])
        rows.append(["pairs with NPMI >= 0.1", f"{facts['pairs_at_0.1_or_more']:,}"])
    made = ", ".join(f"{name}={value}" for name, value in sorted(table.params.items()))
    rows.append(["made with", made or "no stated parameters"])
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    if n_pairs and table.n_pairs:
        pairs = [[first, second, f"{npmi:+.3f}"] for first, second, npmi in table.strongest(n_pairs)]
        lines += ["", *align([["gene", "followed by", "NPMI"], *pairs])]
    return "\n".join(lines)
