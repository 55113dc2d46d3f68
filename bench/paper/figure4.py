"""Figure 4 of the paper: does masking by correlation help as data become more modular (appendix B.2).

    python bench/paper/figure4.py            50 small models, --jobs at a time, a core each
    python bench/paper/figure4.py --cut --modularity 1       one point of the control with equal rates

1 500 samples of 60 genes in 3 modules. Each sample adds a signal to 20 genes: with probability gamma to those of its
module, else to any 20. A sample is the rank of each gene; a small transformer learns to name masked ranks, and its
frozen [CLS] embedding is asked, by logistic regression, which module was active.

    random         25 % of the genes
    correlation    until 25 % are masked: a gene at random, up to 8 of its module's others, itself with probability 0.5

What the paper leaves open, and what is done here: "Exp(0.1)" is read as rate 0.1 (mean 10), as "Exp(lambda = 1)" is a
rate in B.1 (`--background scale` takes mean 0.1); the signal is one number a sample; a group is not cut at 25 %, so
correlation masks a little more (`--cut` cuts it; rates stand in the table); [CLS] is not masked and learns through
attention alone; layers are PyTorch's defaults (ReLU, norm behind, dropout 0.1 but on attention weights).
Both strategies of a trial see the same data, initial weights and batches.
"""

from __future__ import annotations

import csv
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from experiment import conclude, options, save_table
from sklearn.linear_model import LogisticRegression
from torch import nn

from corrmask_fast.plots import GREY, LOOKS, PAGE, TEXT, new_figure, save_figure, style_axis

N_SAMPLES, N_TRAIN, N_TEST, N_GENES, N_MODULES = 1500, 800, 500, 60, 3
CLS, MASK = N_GENES, N_GENES + 1
RATE, PARTNERS, SEED_ITSELF = 0.25, 8, 0.5
GAMMAS = (0.0, 0.25, 0.5, 0.75, 1.0)
STRATEGIES = ("random", "correlation")
PAPER = "about 10 % better than random at modularity 1.0; alike below 0.25"
MODULE = np.arange(N_GENES) * N_MODULES // N_GENES


def generate(rng, gamma, background):
    """Return (samples, genes) ranks and (samples,) labels."""
    label = rng.integers(0, N_MODULES, N_SAMPLES)
    x = rng.exponential(10.0 if background == "rate" else 0.1, (N_SAMPLES, N_GENES))
    coherent = rng.random(N_SAMPLES) < gamma
    anywhere = np.argsort(rng.random(x.shape), axis=1) < N_GENES // N_MODULES
    raised = np.where(coherent[:, None], label[:, None] == MODULE, anywhere)
    x += raised * rng.normal(10.0, 0.5, (N_SAMPLES, 1))
    return np.argsort(np.argsort(x, axis=1), axis=1), label


def random_mask(rng, rows):
    """Return (rows, genes) bool with exactly 25 % of each row."""
    return np.argsort(np.argsort(rng.random((rows, N_GENES)), axis=1), axis=1) < round(RATE * N_GENES)


def correlation_mask(rng, rows, *, cut):
    """Return (rows, genes) bool; every row takes seeds with their partners until a quarter is masked."""
    masked, least = np.zeros((rows, N_GENES), bool), round(RATE * N_GENES)
    order = np.full((rows, N_GENES), np.inf)  # when a gene came in, to cut behind
    for turn in range(10_000):
        open_rows = np.flatnonzero(masked.sum(axis=1) < least)
        if open_rows.size == 0:
            break
        seed = rng.integers(0, N_GENES, open_rows.size)
        keys = rng.random((open_rows.size, N_GENES))
        keys[MODULE[seed][:, None] != MODULE] = 2.0
        keys[np.arange(open_rows.size), seed] = 3.0
        chosen = np.argsort(np.argsort(keys, axis=1), axis=1) < PARTNERS
        chosen[np.arange(open_rows.size), seed] = rng.random(open_rows.size) < SEED_ITSELF
        new = chosen & ~masked[open_rows]
        order[open_rows] = np.where(new, turn + rng.random(new.shape), order[open_rows])
        masked[open_rows] |= chosen
    return np.argsort(np.argsort(order, axis=1), axis=1) < least if cut else masked


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(N_GENES + 2, 64)
        self.position = nn.Embedding(N_GENES + 1, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        layer.self_attn.dropout = 0.0  # of attention weights: a third of all the time
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, N_GENES)

    def forward(self, tokens):
        return self.encoder(self.token(tokens) + self.position.weight)


def with_cls(ranks):
    return torch.nn.functional.pad(torch.as_tensor(ranks), (1, 0), value=CLS)


def train(ranks, strategy, epochs, seed, *, cut):
    """Pretrain on masked ranks; return the model, the share masked and the mean loss of the last epoch."""
    torch.manual_seed(seed)
    model, rng, batches = Model(), np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    n_masked, losses = 0, []
    for _ in range(epochs):
        losses.clear()
        shuffled = ranks[batches.permutation(len(ranks))]
        for rows in np.array_split(shuffled, range(64, len(shuffled), 64)):
            masked = random_mask(rng, len(rows)) if strategy == "random" else correlation_mask(rng, len(rows), cut=cut)
            n_masked += int(masked.sum())
            replace = rng.random(rows.shape)
            seen = np.where(masked & (replace < 0.8), MASK, rows)
            seen = np.where(masked & (replace >= 0.9), rng.integers(0, N_GENES, rows.shape), seen)
            at = torch.as_tensor(masked)
            loss = nn.functional.cross_entropy(model.head(model(with_cls(seen))[:, 1:][at]), torch.as_tensor(rows)[at])
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
    return model.eval(), n_masked / (epochs * ranks.size), float(np.mean(losses))


@torch.inference_mode()
def embed(model, ranks):
    return model(with_cls(ranks))[:, 0].numpy()


def trial(gamma, strategy, seed, epochs, given):
    ranks, label = generate(np.random.default_rng(seed), gamma, given.background)
    learn, test = slice(0, N_TRAIN), slice(N_SAMPLES - N_TEST, N_SAMPLES)
    begin = time.perf_counter()
    model, rate, loss = train(ranks[learn], strategy, epochs, seed, cut=given.cut)
    judge = LogisticRegression(max_iter=2000).fit(embed(model, ranks[learn]), label[learn])
    accuracy = judge.score(embed(model, ranks[test]), label[test])
    on_ranks = LogisticRegression(max_iter=2000).fit(ranks[learn] / N_GENES, label[learn])
    return {
        "gamma": gamma, "strategy": strategy, "seed": seed, "accuracy": round(float(accuracy), 4),
        "accuracy_of_ranks": round(float(on_ranks.score(ranks[test] / N_GENES, label[test])), 4),
        "mask_rate": round(rate, 4), "last_loss": round(loss, 4), "epochs": epochs, "background": given.background,
        "cut": given.cut, "seconds": round(time.perf_counter() - begin, 1), "torch": torch.__version__,
    }  # fmt: skip


def mean_and_error(values):
    values = 100 * np.asarray(values)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else np.nan


def accuracies(rows, gamma, strategy, field="accuracy"):
    return np.array([row[field] for row in rows if row["gamma"] == gamma and row["strategy"] == strategy])


def draw(path, rows, gammas):
    figure = new_figure((PAGE, 2.9))
    left, right = figure.subplots(1, 2)
    random, correlation = ({"color": LOOKS[name].color, "marker": LOOKS[name].marker, "capsize": 3, "markersize": 4}
                           for name in ("random", "corrmask"))  # fmt: skip
    for strategy, style in zip(STRATEGIES, (random, correlation), strict=True):
        points = [mean_and_error(accuracies(rows, gamma, strategy)) for gamma in gammas]
        left.errorbar(gammas, *zip(*points, strict=True), label=strategy, **style)
    straight = [mean_and_error(accuracies(rows, gamma, "random", "accuracy_of_ranks"))[0] for gamma in gammas]
    left.plot(gammas, straight, color="black", linewidth=0.8, linestyle=":", label="ranks, no model")
    left.axhline(100 / N_MODULES, color=GREY, linewidth=0.8, linestyle="--")
    left.annotate("chance", (gammas[-1], 100 / N_MODULES), (0, 3), ha="right", color=GREY, **TEXT)
    left.legend(frameon=False, fontsize=7)
    style_axis(left, title="Which module was active, from [CLS]", x="modularity", y="accuracy (%)")
    gaps = [mean_and_error(np.subtract(*(accuracies(rows, g, s) for s in STRATEGIES[::-1]))) for g in gammas]
    right.errorbar(gammas, *zip(*gaps, strict=True), **correlation)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.plot([1.0], [10.0], "*", color="black", markersize=8)
    right.annotate("paper", (1.0, 10.0), (-6, 0), ha="right", va="center", **TEXT)
    style_axis(right, title="Correlation minus random (± standard error)", x="modularity", y="percentage points")
    save_figure(figure, path)
    return dict(zip(gammas, gaps, strict=True))


def finished(table):
    """Return the rows of a table that is there already, numbers as numbers."""
    if not table.exists():
        return []
    kinds = {"gamma": float, "seed": int, "accuracy": float, "accuracy_of_ranks": float, "epochs": int}
    with table.open(newline="", encoding="utf-8") as file:
        return [{name: kinds.get(name, str)(value) for name, value in row.items()} for row in csv.DictReader(file)]


def main(arguments=None):
    parser = options(__doc__.splitlines()[0])
    parser.add_argument("--background", choices=("rate", "scale"), default="rate", help="what the 0.1 of Exp(0.1) is")
    parser.add_argument("--cut", action="store_true", help="mask no more than 25 %% by correlation either")
    parser.add_argument("--modularity", nargs="+", type=float, metavar="GAMMA", help="only at these (default: five)")
    parser.add_argument("--jobs", type=int, default=2, help="models trained at a time, a core each (default: 2)")
    parser.add_argument("--resume", action="store_true", help="keep the rows of a run that was broken off")
    given = parser.parse_args(arguments)
    gammas, trials, epochs = ((0.0, 1.0), 2, 2) if given.quick else (GAMMAS, 5, 50)
    gammas = tuple(given.modularity or gammas)
    seeds = range(1000 * given.seed, 1000 * given.seed + trials)
    name = "figure4" + ("-scale" if given.background == "scale" else "") + ("-cut" if given.cut else "")
    table, picture = given.out / f"{name}.csv", given.out / f"{name}.png"
    # Trial by trial, so that a run that is broken off has something to say of every modularity.
    todo = [(gamma, strategy, seed, epochs, given) for seed in seeds for gamma in gammas for strategy in STRATEGIES]
    rows = finished(table) if given.resume else []
    done = {(row["gamma"], row["strategy"], row["seed"]) for row in rows if row["epochs"] == epochs}
    todo = [one for one in todo if one[:3] not in done]
    with ProcessPoolExecutor(given.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for row in pool.map(trial, *zip(*todo, strict=True)):
            print({name: row[name] for name in ("gamma", "strategy", "seed", "accuracy", "seconds")}, flush=True)
            rows.append(row)
            save_table(table, rows)
    gaps = draw(picture, rows, gammas)
    text = "; ".join(f"{gap:+.1f} ± {error:.1f} at {gamma:g}" for gamma, (gap, error) in gaps.items())
    conclude(PAPER, f"correlation minus random, in points (± standard error of {trials}): {text}", table, picture)
    return gaps


if __name__ == "__main__":
    main()
