"""Everything once: from counts to a graph, masks, an audit, a speed comparison and a tiny model, with a report."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import math
import platform
import shutil
import textwrap
import time
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import corrmask_fast
from corrmask_fast.errors import InputError, MissingExtraError, import_extra
from corrmask_fast.files import atomic_file, check_output_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

__all__ = ["DemoSize", "run_demo"]

MARKER = ".corrmask-demo"  # tells a folder that the demo made, and may clear, from anyone else's
BATCH = 64

MODEL_LENGTH = 256  # positions of the tiny BERT


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does: the defaults end within 3 minutes on two cores."""

    n_cells: int = 20_000
    n_genes: int = 4_000
    n_modules: int = 40
    compare_seconds: float = 2.0
    training_steps: int = 60


class Journal:
    """Prints each step as it happens, and keeps it for the report."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.began = folder, time.perf_counter()
        self.pages: list[str] = []

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Print the title of a step, and at its end the seconds that it took."""
        title = f"{sum(page.startswith('## ') for page in self.pages) + 1}. {title}"
        print(f"\n{title}", flush=True)
        place, began = len(self.pages), time.perf_counter()
        self.pages.append("")
        yield
        seconds = time.perf_counter() - began
        self.pages[place] = f"## {title} ({seconds:.1f} s)"
        print(f"   [{seconds:.1f} s]", flush=True)

    def say(self, text: str, page: str = "") -> None:
        """Print a sentence and keep it, or ``page`` in its place."""
        lines = textwrap.fill(text.replace(" %", "\u00a0%"), 110).replace("\u00a0", " ")  # "5 %" stays on one line
        print(textwrap.indent(lines, "   "), flush=True)
        self.pages.append(page or text)

    def show(self, table: str) -> None:
        """Print lines that are aligned, and keep them so."""
        print(textwrap.indent(table, "   "), flush=True)
        self.pages.append(f"```\n{table}\n```")

    def picture(self, name: str, caption: str) -> None:
        """Put a picture of the folder into the report."""
        self.say(f"picture: {self.folder / name}", f"![{caption}]({name})")

    def write(self, title: str) -> Path:
        """Write the report, with the conditions of the run."""
        seconds, report = time.perf_counter() - self.began, self.folder / "report.md"
        conditions = (
            f"corrmask-fast {corrmask_fast.__version__}, PyTorch {importlib.metadata.version('torch')}, Python "
            f"{platform.python_version()}, {platform.system()} {platform.machine()}, "
            f"{corrmask_fast.get_num_threads()} threads"
        )
        with atomic_file(report) as temporary:
            head = [f"# {title}", f"{conditions}. All of it took {seconds:.0f} s."]
            temporary.write_text("\n\n".join([*head, *self.pages]) + "\n")
        print(f"\nreport: {report}   ({seconds:.0f} s in all)")
        return report


def run_demo(
    folder: str | os.PathLike[str],
    *,
    input_path: str | os.PathLike[str] | None = None,
    tokens: str | os.PathLike[str] | None = None,
    medians: str | os.PathLike[str] | None = None,
    symbols: str | os.PathLike[str] | None = None,
    roles: Mapping[str, Any] | None = None,
    progress: bool = True,
    size: DemoSize | None = None,
) -> Path:
    """Run the whole path on made-up cells, or on an ``.h5ad`` file of raw counts, and return the report's path.

    ``folder`` is made if missing (but not its parent), and refused if it holds anything but an earlier demo. The other
    arguments are the options of ``corrmask-fast demo``; ``roles``: of special tokens, as a vocabulary takes them.

    Raises
    ------
    InputError
        If the folder is not the demo's, or the input is not what it should be.
    MissingExtraError
        Without the extra ``anndata``, or ``plot``. Without ``hf`` the steps that need it are left out, and say so.
    """
    import_extra("matplotlib", "plot")
    if symbols is not None and tokens is None:
        raise InputError("symbols name the genes of a token dictionary; give tokens (--tokens) with them, or neither")
    size, journal, modules = size or DemoSize(), Journal(_claim(Path(folder))), None
    print(f"corrmask-fast demo → {journal.folder}")
    source = journal.folder / "cells.h5ad" if input_path is None else Path(input_path)
    if input_path is None:
        modules = _make_cells(journal, source, size)
    corpus_path = journal.folder / ("cells.dataset" if importlib.util.find_spec("datasets") else "cells.npz")
    with journal.step(f"Tokenise {source.name}"):
        vocabulary = _vocabulary(journal, source, tokens, symbols, roles or {})
        journal.show(str(corrmask_fast.tokenize(source, corpus_path, vocabulary, medians, progress=progress)))
    corpus = corrmask_fast.read_corpus(corpus_path)
    graph = _build_graph(journal, corpus, modules, progress)
    from corrmask_fast.masking.strategies import DEFAULT

    masker = corrmask_fast.make_masker(DEFAULT, graph=graph)
    _mask_an_epoch(journal, corpus, masker)
    _audit(journal, corpus, masker, graph, progress)
    try:
        lists = import_extra("transformers", "hf") and import_extra("datasets", "hf").load_from_disk(str(corpus_path))
    except MissingExtraError as error:
        with journal.step("Hugging Face: left out"):
            journal.say(f"The comparison and the tiny BERT are left out: {error}.")
    else:
        with _one_thread():
            _compare_speed(journal, corpus, lists.select_columns(["input_ids"]), masker, size.compare_seconds)
            length = MODEL_LENGTH - corpus.vocabulary.n_surrounding
            short = corrmask_fast.read_corpus(corpus_path, max_length=length)
            _train(journal, short, masker, size.training_steps, progress)
    commands = (
        f"corrmask-fast graph show {journal.folder}/graph.safetensors GENE\n"
        f"corrmask-fast audit {corpus_path} --graph {journal.folder}/graph.safetensors --structural-ratio 1.0"
    )
    journal.pages.append(f"## Go on\n\n```\n{commands}\n```")
    return journal.write(f"CorrMask on {'made-up cells' if input_path is None else source.name}")


def _claim(folder: Path) -> Path:
    """Make the folder, or clear what an earlier demo left in it."""
    check_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise InputError(f"{folder} is not empty and not of an earlier demo; choose another folder with --out")
    folder.mkdir(exist_ok=True)
    (folder / MARKER).touch()
    for name in ("cells.dataset", "run"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


# -------------------------------------------------------------------------------------------------------- the steps


def _make_cells(journal: Journal, path: Path, size: DemoSize) -> np.ndarray:
    """Make up cells and write them as ``.h5ad``; return the planted module of each gene."""
    from corrmask_fast.synthetic import generate_cells

    with journal.step("Make up cells with planted modules"):
        cells = generate_cells(size.n_cells, size.n_genes, n_modules=size.n_modules, seed=0)
        cells.write_h5ad(path)
        types, planted = cells.cell_types.max() + 1, np.count_nonzero(cells.modules >= 0)
        journal.say(
            f"{size.n_cells:,} cells x {size.n_genes:,} genes, {types} cell types, {size.n_modules} co-regulated "
            f"modules with {planted:,} genes; {100 * cells.counts.nnz / np.prod(cells.counts.shape):.1f} % of the "
            "counts are not zero (negative binomial, with library sizes and dropout)."
        )
    return cells.modules


def _vocabulary(journal: Journal, path: Path, tokens: Any, symbols: Any, roles: Mapping[str, Any]) -> Any:
    from corrmask_fast.cells.tokenizer import vocabulary_of
    from corrmask_fast.cli.options import load_vocabulary

    if tokens is not None:
        return load_vocabulary(tokens, symbols, roles)
    journal.say("Vocabulary: the genes of the file, in its order (give --tokens for Geneformer's).")
    return vocabulary_of(path)


def _build_graph(journal: Journal, corpus: Any, modules: np.ndarray | None, progress: bool) -> Any:
    """Build and save the graph, with thresholds that few cells can still meet; say what it found."""
    from corrmask_fast.graph.genesets import ribosomal_genes, set_cohesion
    from corrmask_fast.graph.reports import partner_table, summary_table

    least = corrmask_fast.suggest_thresholds(corpus.n_cells)
    with journal.step("Build the dependency graph"):
        graph = corrmask_fast.build_dependency_graph(corpus, progress=progress, **least)
        graph.save(journal.folder / "graph.safetensors")
        journal.show(summary_table(graph))
        if modules is not None:
            _say_recovered(journal, corpus, graph, modules)
        ribosomal = ribosomal_genes(graph.vocabulary)
        if ribosomal.size:
            journal.say(f"Ribosomal genes (RPL*, RPS*): {set_cohesion(graph, ribosomal)}.")
        if graph.n_edges:
            # The gene with most partners is an example; a ribosomal one tells more.
            among = ribosomal if graph.degrees[ribosomal].any() else np.arange(graph.vocabulary.size)
            journal.show(partner_table(graph, int(among[graph.degrees[among].argmax()]), 5))
    return graph


def _say_recovered(journal: Journal, corpus: Any, graph: Any, modules: np.ndarray) -> None:
    """Compare the graph with the planted modules, over genes that stand in enough cells to be judged."""
    from corrmask_fast.synthetic import module_recovery

    lo, hi = corpus.vocabulary.gene_range
    presence = np.bincount(corpus.tokens, minlength=hi)[lo:hi]
    for least in (graph.params["min_presence"], corpus.n_cells // 10):
        found = module_recovery(graph, modules, expressed=presence >= least)
        journal.say(
            f"Planted pairs of genes that stand in {least:,} cells or more ({found['n_genes']:,} genes): "
            f"{100 * found['recall']:.1f} % are edges ({100 * found['recall_by_chance']:.1f} % by chance)."
        )
    journal.say(
        f"Of the {found['n_edges']:,} edges {100 * found['precision']:.1f} % lie within a planted module "
        f"({100 * found['precision_by_chance']:.1f} % by chance with the same degrees)."
    )


def _loader(cells: Any, collator: Any, *, shuffle: bool = True) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(cells, BATCH, shuffle=shuffle, collate_fn=collator)


def _mask_an_epoch(journal: Journal, corpus: Any, masker: Any) -> None:
    """Mask every cell once through a DataLoader, and check the rate of every row."""
    dataset, collator = corrmask_fast.CorpusDataset(corpus), corrmask_fast.DataCollatorForCorrMask(masker)
    collator.set_epoch(0)
    with journal.step("Mask an epoch"):
        began = time.perf_counter()
        collator(dataset.__getitems__([0]))
        journal.say(f"Kernels ready in {time.perf_counter() - began:.1f} s (compiled once, then kept on disk).")
        began = time.perf_counter()
        masked = np.concatenate([(b["labels"] != -100).sum(1) for b in _loader(dataset, collator, shuffle=False)])
        seconds = time.perf_counter() - began
        exact = np.count_nonzero(masked == np.floor(corpus.lengths * masker.mlm_probability))
        journal.say(
            f"{corpus.n_cells:,} cells fetched, padded, masked and labelled in {seconds:.2f} s, in batches of {BATCH} "
            f"({corpus.n_cells / seconds:,.0f} cells/s)."
        )
        journal.say(
            f"{masked.sum():,} of {corpus.nnz:,} genes masked ({100 * masked.sum() / corpus.nnz:.2f} %): exactly "
            f"floor(n * {masker.mlm_probability}) of n in {exact:,} of {corpus.n_cells:,} cells."
        )


def _audit(journal: Journal, corpus: Any, masker: Any, graph: Any, progress: bool) -> None:
    from corrmask_fast.audit.masks import CONTROL
    from corrmask_fast.audit.plots import plot_audit

    with journal.step("Audit what masking hides"):
        report = corrmask_fast.audit_masking(masker, corpus, graph, progress=progress)
        journal.show(report.table())
        ours, control = report["CorrMask"].hit_rate, report[CONTROL].hit_rate
        if control > 0:  # few cells may hold no masked pair at all
            journal.say(
                f"Partners in the cell of a masked gene are masked with it {ours / control:.1f} times as often as at "
                f"random ({100 * ours:.1f} % against {100 * control:.1f} %)."
            )
        report.save_csv(journal.folder / "audit.csv")
        plot_audit(report, journal.folder / "audit.png")
        journal.picture("audit.png", "What masking hides")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let PyTorch and our kernels use one thread each: a fair race, and quicker for a model this small."""
    import torch

    threads, torch_threads = corrmask_fast.get_num_threads(), torch.get_num_threads()
    corrmask_fast.set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        corrmask_fast.set_num_threads(threads)
        torch.set_num_threads(torch_threads)


def _compare_speed(journal: Journal, corpus: Any, lists: Any, masker: Any, seconds: float) -> None:
    """Time fetching and collating through a DataLoader: today's way first, then ours."""
    from corrmask_fast.masking.stock import stock_collator
    from corrmask_fast.tables import align

    ours, rates = corrmask_fast.DataCollatorForCorrMask(masker), {}
    with journal.step("Compare with Hugging Face's collator"):
        for name, loader in (
            (
                "datasets folder, Hugging Face's collator (random masks)",
                _loader(lists, stock_collator(corpus.vocabulary)),
            ),
            ("datasets folder, our collator", _loader(lists, ours)),
            ("CorpusDataset, our collator", _loader(corrmask_fast.CorpusDataset(corpus), ours)),
        ):
            batches, cells, passed = chain.from_iterable(repeat(loader)), 0, 0.0
            next(batches)
            began = time.perf_counter()
            while passed < seconds:
                cells += len(next(batches)["input_ids"])
                passed = time.perf_counter() - began
            rates[name] = cells / passed
        first = next(iter(rates.values()))
        lines = [[name, f"{rate:,.0f}", f"{rate / first:.1f}x"] for name, rate in rates.items()]
        journal.show("\n".join(align([["input pipeline", "cells/s", "ratio"], *lines])))
        journal.say(
            f"DataLoader without workers, one thread each, batches of {BATCH} cells of {np.mean(corpus.lengths):.0f} "
            "genes on average, all in this run."
        )


def _train(journal: Journal, corpus: Any, masker: Any, steps: int, progress: bool) -> None:
    """Pretrain a small BERT on the first genes of the cells."""
    from corrmask_fast.training.plots import plot_loss
    from corrmask_fast.training.run import pretrain
    from corrmask_fast.training.settings import PretrainingSettings

    model = {"hidden_size": 64, "layers": 2, "intermediate_size": 128, "dropout": 0.0, "max_length": MODEL_LENGTH}
    run = {"max_steps": steps, "learning_rate": 2e-3, "lr_schedule": "constant", "held_out": 0.0, "log_every": 1}
    settings = PretrainingSettings.read(None, "small", **model, **run, save_every=10**9, device="cpu")
    with journal.step("Train a tiny BERT"):
        with contextlib.redirect_stdout(io.StringIO()):  # Trainer prints every step
            report = pretrain(corpus, masker, journal.folder / "run", settings, progress=progress)
        losses = [row["loss"] for row in report.history if "loss" in row]
        few, chance = max(1, steps // 10), math.log(np.subtract(*corpus.vocabulary.gene_range[::-1]))
        first, last = np.mean(losses[:few]), np.mean(losses[-few:])
        journal.say(
            f"BERT, 2 layers of width 64, {steps} steps of {settings.batch_size} cells, first {settings.max_length} "
            f"genes of each; saved to {report.folder / 'model'}."
        )
        journal.say(
            f"Loss at masked genes {'fell' if last < first else 'did not fall'}: {first:.2f} to {last:.2f} nats "
            f"(means of {few} steps; a uniform guess has {chance:.2f})."
        )
        plot_loss(losses, journal.folder / "loss.png", chance=chance, window=few)
        journal.picture("loss.png", "Loss of the tiny BERT")
