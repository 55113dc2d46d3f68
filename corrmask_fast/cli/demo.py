"""Everything once: from counts to a graph, masks, an audit, a speed comparison and a tiny model, with a report."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import textwrap
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast import __version__
from corrmask_fast.errors import InputError, MissingExtraError, import_extra
from corrmask_fast.files import atomic_file, check_output_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from corrmask_fast.cells.corpus import Corpus
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.base import Masker

__all__ = ["DemoSize", "run_demo"]

MARKER = ".corrmask-demo"  # tells a folder that the demo made, and may clear, from anyone else's
BATCH = 64


@dataclass(frozen=True)
class DemoSize:
    """How much the demo does: the defaults end within 3 minutes on two cores."""

    n_cells: int = 20_000
    n_genes: int = 4_000
    n_modules: int = 40
    compare_seconds: float = 2.0
    training_steps: int = 60


@dataclass
class Journal:
    """Prints each step as it happens, and keeps it for the report."""

    folder: Path
    progress: bool
    pages: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    @property
    def corpus_path(self) -> Path:
        """Where the tokenised cells go: a datasets folder where datasets is installed, else one file."""
        return self.folder / ("cells.dataset" if importlib.util.find_spec("datasets") else "cells.npz")

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Head a step; say how long it took."""
        number = sum(page.startswith("## ") for page in self.pages) + 1
        print(f"\n{number}. {title}", flush=True)
        place, began = len(self.pages), time.perf_counter()
        self.pages.append("")
        yield
        seconds = time.perf_counter() - began
        self.pages[place] = f"## {number}. {title} ({seconds:.1f} s)"
        print(f"   [{seconds:.1f} s]", flush=True)

    def say(self, text: str) -> None:
        """Print a sentence and keep it."""
        # A number stays on the line of its unit.
        lines = textwrap.fill(text.replace(" %", "\u00a0%"), 110).replace("\u00a0", " ")
        print(textwrap.indent(lines, "   "), flush=True)
        self.pages.append(text)

    def show(self, table: str) -> None:
        """Print lines that are aligned and keep them so."""
        print(textwrap.indent(table, "   "), flush=True)
        self.pages.append(f"```\n{table}\n```")

    def picture(self, name: str, caption: str) -> None:
        """Put a picture of the folder into the report."""
        self.say(f"picture: {self.folder / name}")
        self.pages[-1] = f"![{caption}]({name})"

    def write(self, title: str) -> Path:
        """Write the report."""
        seconds = time.perf_counter() - self.began
        head = [f"# {title}", f"{conditions()}. All of it took {seconds:.0f} s."]
        path = self.folder / "report.md"
        with atomic_file(path) as temporary:
            temporary.write_text("\n\n".join(head + self.pages) + "\n")
        return path


def conditions() -> str:
    """Say what the figures were measured with."""
    import torch

    from corrmask_fast.threads import get_num_threads

    return (
        f"corrmask-fast {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}, {get_num_threads()} threads"
    )


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

    Parameters
    ----------
    folder
        Where everything goes; made if missing (but not its parent); refused if it holds anything but an earlier demo.
    input_path
        Raw counts; None: cells with planted co-regulated modules and types.
    tokens, medians, symbols
        Dictionaries for ``input_path`` as Geneformer's; without ``tokens`` the file's own genes make the vocabulary.
    roles
        ``pad``, ``mask`` and ``special`` of ``tokens``, as :class:`~corrmask_fast.Vocabulary` takes them.
    progress
        Show progress bars.
    size
        How much to do.

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
    size = size or DemoSize()
    journal = Journal(_claim(Path(folder)), progress)
    print(f"corrmask-fast demo → {journal.folder}")
    if input_path is None:
        corpus, modules = _make_cells(journal, size)
    else:
        corpus, modules = _read_cells(journal, Path(input_path), tokens, medians, symbols, roles or {}), None
    graph = _build_graph(journal, corpus, modules)
    masker = _mask_an_epoch(journal, corpus, graph)
    _audit(journal, masker, corpus, graph)
    try:
        import_extra("transformers", "hf")
        import_extra("datasets", "hf")
    except MissingExtraError as error:
        with journal.step("Hugging Face: left out"):
            journal.say(f"The comparison and the tiny BERT are left out: {error}.")
    else:
        _compare_speed(journal, masker, corpus, size)
        _train(journal, masker, size)
    journal.pages.append(_next_steps(journal))
    report = journal.write(
        "CorrMask on made-up cells" if input_path is None else f"CorrMask on {Path(input_path).name}"
    )
    print(f"\nreport: {report}   ({time.perf_counter() - journal.began:.0f} s in all)")
    return report


def _next_steps(journal: Journal) -> str:
    """Return the commands that go on from here."""
    graph, corpus = journal.folder / "graph.safetensors", journal.corpus_path
    commands = (
        f"corrmask-fast graph show {graph} GENE\n"
        f"corrmask-fast audit {corpus} --graph {graph} --structural-ratio 1.0 --plot {journal.folder / 'lambda1.png'}"
    )
    return f"## Go on\n\n```\n{commands}\n```"


def _claim(folder: Path) -> Path:
    """Make the folder, or clear what an earlier demo left in it."""
    check_output_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise InputError(f"{folder} is not empty and not of an earlier demo; choose another folder with --out")
    folder.mkdir(exist_ok=True)
    (folder / MARKER).touch()
    shutil.rmtree(folder / "cells.dataset", ignore_errors=True)
    return folder


# -------------------------------------------------------------------------------------------------------- the steps


def _make_cells(journal: Journal, size: DemoSize) -> tuple[Corpus, np.ndarray]:
    """Make up cells, write them as ``.h5ad``, tokenise that; return also the planted module of each gene."""
    from corrmask_fast.synthetic import generate_cells

    path = journal.folder / "cells.h5ad"
    with journal.step("Make up cells with planted modules"):
        cells = generate_cells(size.n_cells, size.n_genes, n_modules=size.n_modules, seed=0)
        cells.write_h5ad(path)
        types, planted = cells.cell_types.max() + 1, np.count_nonzero(cells.modules >= 0)
        journal.say(
            f"{size.n_cells:,} cells x {size.n_genes:,} genes, {types} cell types, {size.n_modules} co-regulated "
            f"modules with {planted:,} genes; {100 * cells.counts.nnz / np.prod(cells.counts.shape):.1f} % of the "
            "counts are not zero (negative binomial, with library sizes and dropout)."
        )
    with journal.step("Tokenise"):
        return _tokenize(journal, path, cells.vocabulary, None), cells.modules


def _read_cells(
    journal: Journal,
    path: Path,
    tokens: str | os.PathLike[str] | None,
    medians: str | os.PathLike[str] | None,
    symbols: str | os.PathLike[str] | None,
    roles: Mapping[str, Any],
) -> Corpus:
    """Tokenise a file of raw counts with the given dictionaries, or with its own genes and medians."""
    from corrmask_fast.cells.tokenizer import vocabulary_of
    from corrmask_fast.cli.options import load_vocabulary

    with journal.step(f"Tokenise {path.name}"):
        if tokens is None:
            vocabulary = vocabulary_of(path)
            journal.say("Vocabulary: the genes of the file, in its order (give --tokens for Geneformer's).")
        else:
            vocabulary = load_vocabulary(tokens, symbols, roles)
        return _tokenize(journal, path, vocabulary, medians)


def _tokenize(journal: Journal, path: Path, vocabulary: Vocabulary, medians: Any) -> Corpus:
    from corrmask_fast.cells.corpus_io import read_corpus
    from corrmask_fast.cells.tokenizer import tokenize

    corpus_path = journal.corpus_path
    journal.show(str(tokenize(path, corpus_path, vocabulary, medians, progress=journal.progress)))
    return read_corpus(corpus_path)


def _build_graph(journal: Journal, corpus: Corpus, modules: np.ndarray | None) -> DependencyGraph:
    """Build and save the graph, with thresholds that few cells can still meet; say what it found."""
    from corrmask_fast.cli.graph import partner_table, summary_table
    from corrmask_fast.graph.building import build_dependency_graph
    from corrmask_fast.graph.genesets import ribosomal_genes, set_cohesion

    with journal.step("Build the dependency graph"):
        graph = build_dependency_graph(
            corpus,
            min_cooccurrence=max(1, min(200, corpus.n_cells // 10)),
            min_presence=max(1, min(50, corpus.n_cells // 40)),
            progress=journal.progress,
        )
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


def _say_recovered(journal: Journal, corpus: Corpus, graph: DependencyGraph, modules: np.ndarray) -> None:
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


def _mask_an_epoch(journal: Journal, corpus: Corpus, graph: DependencyGraph) -> Masker:
    """Mask every cell once through a DataLoader, and check the rate of every row."""
    from torch.utils.data import DataLoader
    from tqdm.auto import tqdm

    from corrmask_fast.cells.dataset import CorpusDataset
    from corrmask_fast.masking.collator import DataCollatorForCorrMask
    from corrmask_fast.masking.factory import make_masker
    from corrmask_fast.masking.strategies import DEFAULT

    masker = make_masker(DEFAULT, graph=graph)
    collator = DataCollatorForCorrMask(masker)
    collator.set_epoch(0)
    loader = DataLoader(CorpusDataset(corpus), BATCH, shuffle=True, collate_fn=collator)
    special = np.array(corpus.vocabulary.special_token_ids)
    with journal.step("Mask an epoch"):
        began = time.perf_counter()
        collator(CorpusDataset(corpus).__getitems__([0]))
        journal.say(f"Kernels ready in {time.perf_counter() - began:.1f} s (compiled once, then kept on disk).")
        masked = genes = exact = 0
        seconds = 0.0
        began = time.perf_counter()
        for batch in tqdm(loader, desc="mask", unit="batch", disable=not journal.progress):
            seconds += time.perf_counter() - began
            ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
            in_row = (labels != -100).sum(1)
            maskable = (np.where(labels == -100, ids, labels)[:, :, None] != special).all(-1).sum(1)
            exact += int(np.count_nonzero(in_row == np.floor(maskable * masker.mlm_probability)))
            masked, genes = masked + int(in_row.sum()), genes + int(maskable.sum())
            began = time.perf_counter()
        journal.say(
            f"{corpus.n_cells:,} cells fetched, padded, masked and labelled in {seconds:.2f} s, in batches of {BATCH} "
            f"({corpus.n_cells / seconds:,.0f} cells/s)."
        )
        journal.say(
            f"{masked:,} of {genes:,} genes masked ({100 * masked / genes:.2f} %): exactly floor(n * "
            f"{masker.mlm_probability}) of n in {exact:,} of {corpus.n_cells:,} cells."
        )
    return masker


def _audit(journal: Journal, masker: Masker, corpus: Corpus, graph: DependencyGraph) -> None:
    from corrmask_fast.audit.masks import CONTROL, audit_masking
    from corrmask_fast.audit.plots import plot_audit

    with journal.step("Audit what masking hides"):
        report = audit_masking(masker, corpus, graph, progress=journal.progress)
        journal.show(report.table())
        ours, control = report["CorrMask"], report[CONTROL]
        if control.hit_rate > 0:  # few cells may hold no masked pair at all
            journal.say(
                f"Partners in the cell of a masked gene are masked with it {ours.hit_rate / control.hit_rate:.1f} "
                f"times as often as at random ({100 * ours.hit_rate:.1f} % against {100 * control.hit_rate:.1f} %)."
            )
        report.save_csv(journal.folder / "audit.csv")
        plot_audit(report, journal.folder / "audit.png")
        journal.picture("audit.png", "What masking hides")


def _compare_speed(journal: Journal, masker: Masker, corpus: Corpus, size: DemoSize) -> None:
    from corrmask_fast.cli.demo_models import compare_collators, throughput_table

    with journal.step("Compare with Hugging Face's collator"):
        rows = compare_collators(corpus, journal.corpus_path, masker, batch_size=BATCH, seconds=size.compare_seconds)
        journal.show(throughput_table(rows))
        journal.say(
            f"DataLoader without workers, one thread each, batches of {BATCH} cells of {np.mean(corpus.lengths):.0f} "
            "genes on average, all in this run."
        )


def _train(journal: Journal, masker: Masker, size: DemoSize) -> None:
    from corrmask_fast.cli.demo_models import chance_loss, train_tiny_bert
    from corrmask_fast.training.plots import plot_loss

    with journal.step("Train a tiny BERT"):
        training = train_tiny_bert(journal.corpus_path, masker, steps=size.training_steps, progress=journal.progress)
        chance, losses = chance_loss(masker), training.losses
        few = max(1, losses.size // 10)
        first, last = losses[:few].mean(), losses[-few:].mean()
        journal.say(f"{training.description}.")
        journal.say(
            f"Loss at masked genes {'fell' if last < first else 'did not fall'}: {first:.2f} to {last:.2f} nats "
            f"(means of {few} steps; a uniform guess has {chance:.2f})."
        )
        plot_loss(losses.tolist(), journal.folder / "loss.png", chance=chance, window=few)
        journal.picture("loss.png", "Loss of the tiny BERT")
