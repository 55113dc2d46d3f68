"""README and docs do what they say: every command and every Python block runs as it stands.

A page's blocks run in order, in one folder and one namespace. What cannot run here has the reason in a comment
right above it: ``<!-- not run: reason -->``. Tutorials are notebooks, which `make docs` executes.
"""

from __future__ import annotations

import csv
import importlib
import pickle
import re
import shlex
import shutil
from pathlib import Path

import pytest

from corrmask_fast import read_corpus
from corrmask_fast.cells.tokenizer import corpus_medians
from corrmask_fast.cli.main import main
from corrmask_fast.synthetic import generate_cells

ROOT = Path(__file__).resolve().parents[1]
FIRST = ROOT / "docs" / "how-to" / "index.md"
README = ROOT / "README.md"
PAGES = [README, ROOT / "docs" / "install.md", *sorted(FIRST.parent.glob("[!i]*.md"))]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<language>bash|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NEEDS = {"docs/how-to/lightning.md": "lightning"}  # .ci/lightning runs these pages


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    """A folder with what a reader brings: cells, a corpus and a graph of them, dictionaries in Geneformer's form."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("brought")
    cells = generate_cells(600, 150, n_modules=5, n_types=2)
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "more").mkdir()
    generate_cells(600, 150, n_modules=5, n_types=2, seed=1).write_h5ad(folder / "more" / "cells2.h5ad")
    medians = corpus_medians(folder / "cells.h5ad", cells.vocabulary, progress=False)
    (folder / "gene_median_dictionary.pkl").write_bytes(pickle.dumps(medians))
    tokens = {name: token for token, name in enumerate(cells.vocabulary.names)}
    (folder / "token_dictionary.pkl").write_bytes(pickle.dumps(tokens))
    (folder / "gene_name_id_dict.pkl").write_bytes(pickle.dumps({"RPL3": "GENE0020"}))  # a gene of a planted module
    sets = [("planted", "link", "GENE0020", "RPL3", "GENE0021")]
    for module in range(5):
        genes = [name for name, its in zip(cells.gene_names, cells.modules, strict=True) if its == module]
        sets.append((f"module {module + 1}", "planted", *genes))
    (folder / "sets.gmt").write_text("".join("\t".join(line) + "\n" for line in sets))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks(FIRST):  # the corpus and the graph that all other pages begin with
            run(block["text"], FIRST.name)
    assert list(read_corpus(folder / "cells.dataset").vocabulary.names) == list(tokens)
    tokenised = datasets.load_from_disk(str(folder / "cells.dataset")).select_columns(["input_ids", "length"])
    tokenised.save_to_disk(folder / "genecorpus.dataset")  # as Geneformer's tokenizer writes one: no vocabulary in it
    return folder


def blocks(page):
    return list(BLOCK.finditer(page.read_text()))


def run(commands, where):
    for command in commands.replace("\\\n", "").splitlines():
        program, *arguments = shlex.split(command, comments=True) or ("",)
        if program:
            assert program == "corrmask-fast", f"{where}: {command}"
            assert main(arguments) == 0, f"{where}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_as_it_stands(page, brought, tmp_path, monkeypatch):
    for package in ("torch", "transformers", "datasets", "anndata", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    if needed := NEEDS.get(str(page.relative_to(ROOT))):
        pytest.importorskip(needed)
    folder = tmp_path / "reader"
    made = [] if page.parent == FIRST.parent else ["cells.dataset", "graph.safetensors"]  # other pages make them
    shutil.copytree(brought, folder, ignore=lambda *_: made)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))  # modules that a page tells to save
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = {"__name__": "page"}
    for block in blocks(page):
        line = page.read_text()[: block.start("text")].count("\n") + 1
        if block["reason"]:
            continue
        if block["language"] == "bash":
            run(block["text"], f"{page.name}:{line}")
        else:
            text = block["text"]
            if named := re.match(r"# (\w+\.py)\n", text):  # a file that the page tells to save
                Path(named[1]).write_text(text)
            exec(compile("\n" * (line - 1) + text, page.name, "exec"), names)


def test_links_lead_somewhere():
    pages = [*PAGES, *(ROOT / "bench").rglob("README.md"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!https?://|mailto:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} points to {target}"


def test_figures_of_the_readme_are_recorded():
    """The last rows of AMD EPYC: microseconds a cell, seconds of a graph, and how many times less."""

    def last(file, case, contestant, column, **where):
        with (ROOT / "bench" / "results" / file).open() as rows:
            found = [
                row for row in csv.DictReader(rows)
                if (row["case"], row["contestant"], row["device"]) == (case, contestant, "AMD EPYC")
                and all(row[key] == value for key, value in where.items())
            ]  # fmt: skip
        return float(found[-1][column])

    stock = "stock Trainer, datasets folder, Geneformer-style collator"
    for ours, beside, unit in (
        (last("pretrain.csv", "input", "CorrMaskTrainer, CorpusDataset, our collator", "p50_us", batch="64"),
         last("pretrain.csv", "input", stock, "p50_us", batch="64"), "µs"),
        (last("masking.csv", "masking", "CorrMasker", "p50_us", batch="64"),
         last("masking.csv", "masking", "torch_mask_tokens (random masks)", "p50_us", batch="64"), "µs"),
        (last("graph.csv", "big", "corrmask-fast", "seconds"),
         last("graph.csv", "big", "dense SGEMM at peak, product alone", "seconds"), "s"),
    ):  # fmt: skip
        stated = [f"{x:,.1f}" if x < 100 and unit == "µs" else f"{x:,.0f}" for x in (ours, beside)]
        times = f"{beside / ours:.0f}" if beside / ours > 20 else f"{beside / ours:.1f}"
        line = rf"\| {stated[0]} {unit} \| {stated[1]} {unit}: [^|]* \| {times}x \|"
        assert re.search(line, README.read_text()), line


def test_the_table_of_speed_is_that_of_the_last_recorded_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("run")
    stated = bench.PAGE.read_text().split(bench.BEGIN)[1].split(bench.END)[0]
    assert stated == bench.figures(bench.last_run()), "run: python bench/run.py --page"
