"""Figure 7 of the paper, as an audit: what lambda does to the masks, from uniform (0) to correlated alone (1).

    CORRMASK_DATA=folder python bench/paper/figure7.py         a minute

The paper's figure shows macro-F1 of models pretrained at each lambda, which takes corpora and GPUs that this does not
have; what lambda does to the masks needs neither. Evenness is the share of masked positions that would have to move
for every gene to be masked at the same rate (0: even), over genes seen fifty times or more.
"""

from __future__ import annotations

import numpy as np
from experiment import conclude, options, save_table
from real_cells import CELLS, data_folder, read_cells

from corrmask_fast import CorrMasker, build_dependency_graph
from corrmask_fast.audit.masks import audit_strategies, masks_of
from corrmask_fast.audit.plots import MIN_TIMES_PRESENT
from corrmask_fast.plots import COLORS, PAGE, new_figure, save_figure, style_axis

LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
PAPER = "macro-F1 is best at lambda = 0.5 (a picture; models, not masks)"
PANELS = (
    ("hit_rate", 100, "Partners together", "present partners masked (%)"),
    ("hidden_rate", 100, "Every partner hidden", "masked genes (%)"),
    ("residual_shortcut_same_genes", 1, "Shortcut, same genes", "mean |rho|, strongest in view"),
    ("unevenness", 100, "How uneven", "masks to move until even (%)"),
)


def unevenness(row):
    """Return the share of masked positions to move until every gene is masked at one rate, among genes seen often."""
    often = row.times_present >= min(MIN_TIMES_PRESENT, int(row.times_present.max()))
    masked, present = row.times_masked[often], row.times_present[often]
    even = masked.sum() * present / present.sum()
    return float(np.abs(masked - even).sum() / 2 / masked.sum())


def sweep(corpus, graph, seed, epochs, n_cells):
    """Return the report of all lambdas, each a line named by its number; the control is lambda = 0."""
    masks = {f"{value:g}": masks_of(CorrMasker(graph, seed=seed), structural_ratio=value) for value in LAMBDAS}
    return audit_strategies(
        masks, graph, corpus, controls=["0"], epochs=epochs, n_cells=n_cells, seed=seed, progress=False
    )


def draw(path, rows):
    figure = new_figure((PAGE, 2.2))
    for axis, (field, scale, title, label) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for name, color in zip(CELLS, COLORS, strict=False):
            mine = [row for row in rows if row["cells"] == name]
            axis.plot([row["lambda"] for row in mine], [scale * row[field] for row in mine], "o-", color=color,
                      markersize=3, linewidth=1.2, label=CELLS[name])  # fmt: skip
        axis.set_xticks(LAMBDAS)
        axis.set_ylim(bottom=0)
        style_axis(axis, title=title, x="lambda", y=label)
        if field == PANELS[0][0]:
            axis.legend(frameon=False, fontsize=6.5, loc="upper left")
            axis.set_ylim(top=1.35 * axis.get_ylim()[1])
    save_figure(figure, path)


def main(arguments=None):
    given = options(__doc__.splitlines()[0]).parse_args(arguments)
    folder = data_folder()
    epochs, n_cells = (1, 200) if given.quick else (5, None)
    rows = []
    for name in CELLS:
        corpus = read_cells(folder, name)
        thresholds = {"max_genes": 300} if given.quick else {}
        graph = build_dependency_graph(corpus, seed=given.seed, progress=False, **thresholds)
        report = sweep(corpus, graph, given.seed, epochs, n_cells)
        print(f"\n{CELLS[name]}, {graph}\n{report.table()}", flush=True)
        for row in report:
            figures = {field: round(getattr(row, field), 6) for field in ("hit_rate", "all_partner_hit_rate",
                       "hidden_rate", "residual_shortcut", "residual_shortcut_same_genes", "mean_span", "rate",
                       "genes_reached")}  # fmt: skip
            rows.append({"cells": name, "lambda": float(row.name)} | figures | {
                "unevenness": round(unevenness(row), 6), "n_cells": report.n_cells, "epochs": epochs,
                "edges": graph.n_edges, "seed": given.seed})  # fmt: skip
    table, picture = given.out / "figure7.csv", given.out / "figure7.png"
    save_table(table, rows)
    draw(picture, rows)
    texts = []
    for name in CELLS:
        mine = [row for row in rows if row["cells"] == name]
        ranges = [
            f"{what} " + ", ".join(f"{100 * row[field]:.1f}" for row in mine) + " %"
            for what, field in (("hit rate", "hit_rate"), ("hidden", "hidden_rate"), ("uneven", "unevenness"))
        ]
        ranges.append("shortcut " + ", ".join(f"{row['residual_shortcut_same_genes']:.3f}" for row in mine))
        texts.append(f"{name}: {'; '.join(ranges)}")
    print()
    conclude(
        PAPER, f"of the masks, at lambda {', '.join(f'{value:g}' for value in LAMBDAS)}: {' | '.join(texts)}; "
        "models were not trained", table, picture,
    )  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
