"""Many inputs, one corpus: the cells, medians and columns of all, in shares, and after an interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from count_cases import GENES, NAMES, cells_of, some_counts, write_h5ad
from count_cases import tokenize as tokenize_here

from corrmask_fast import InputError, Vocabulary, corpus_medians, read_corpus, tokenize
from corrmask_fast.cells.sources import inputs_of
from corrmask_fast.cells.tokenizer import vocabulary_of
from corrmask_fast.cli.main import main

anndata = pytest.importorskip("anndata")
pandas = pytest.importorskip("pandas")
pytest.importorskip("datasets")

N = 4
COUNTS = [some_counts(30 + 7 * i, seed=i) for i in range(N)]


@pytest.fixture
def files(tmp_path):
    """Four files whose genes stand in other orders, of which one lacks some."""
    folder = tmp_path / "in"
    folder.mkdir()
    paths = []
    for i, counts in enumerate(COUNTS):
        order = np.random.default_rng(i).permutation(12)[: 12 - 3 * (i == 2)]
        cells = anndata.AnnData(
            sp.csr_matrix(counts[:, order]),
            obs=pandas.DataFrame(index=[f"c{i}-{k}" for k in range(len(counts))]),
            var=pandas.DataFrame(index=[NAMES[k] for k in order]),
        )
        paths.append(folder / f"{'dbac'[i]}.{'zarr' if i == 1 else 'h5ad'}")
        (cells.write_zarr if i == 1 else cells.write_h5ad)(paths[-1])
    return paths


def one_file(files, folder):
    """The same cells as one file, for what must come out alike."""
    parts = [anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path) for path in files]
    whole = anndata.concat(parts, join="outer", fill_value=0)[:, list(NAMES)]
    whole.X = sp.csr_matrix(whole.X)
    whole.write_h5ad(folder / "whole.h5ad")
    return folder / "whole.h5ad"


def tree(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("output", ["out.npz", "out.dataset"])
def test_the_cells_and_medians_of_all_files(files, tmp_path, output):
    whole = one_file(files, tmp_path)
    _, expected = tokenize_here(whole, tmp_path / "whole.npz", obs_names="cell")
    medians = corpus_medians(files, GENES, progress=False)
    assert medians == corpus_medians(whole, GENES, progress=False)
    report = tokenize(files, tmp_path / output, GENES, obs_names="cell", progress=False)
    corpus = read_corpus(tmp_path / output)
    assert cells_of(corpus) == cells_of(expected)
    assert corpus.obs["cell"].tolist() == expected.obs["cell"].tolist()
    names = [path.name for path, counts in zip(files, COUNTS, strict=True) for _ in counts]
    assert corpus.obs["file"].tolist() == [names[i] for i in np.flatnonzero(expected_rows(whole))]
    assert (report.n_cells_read, report.n_cells_written) == (sum(map(len, COUNTS)), corpus.n_cells)
    assert report.median_length == np.median([len(cell) for cell in cells_of(corpus)])
    assert [one.n_cells_read for one in report.files] == [len(counts) for counts in COUNTS]
    assert [one.n_genes_matched for one in report.files] == [12, 12, 9, 12]
    assert "b.zarr" in str(report)
    assert not list(tmp_path.glob("*.parts"))
    if output == "out.dataset":
        assert json.loads((tmp_path / output / "medians.json").read_text()) == medians
        again = tokenize(files, tmp_path / "given.dataset", GENES, medians, file_column=None, progress=False)
        assert cells_of(read_corpus(tmp_path / "given.dataset")) == cells_of(corpus)
        assert "file" not in read_corpus(tmp_path / "given.dataset").obs
        assert again.medians == "as given"


def expected_rows(whole):
    return np.asarray(anndata.read_h5ad(whole).X.sum(axis=1)).ravel() > 0


def test_a_folder_stands_for_the_files_in_it(files, tmp_path):
    folder = files[0].parent
    (folder / "notes.txt").write_text("")
    (folder / ".hidden.h5ad").write_text("")
    assert [path.name for path in inputs_of(folder)] == ["a.h5ad", "b.zarr", "c.h5ad", "d.h5ad"]
    assert inputs_of([files[1], tmp_path]) == [files[1], tmp_path]  # what tmp_path is, is said when it is opened
    for given, message in (([], "there is no input"), ([files[0], folder], "is given twice")):
        with pytest.raises(InputError, match=message):
            inputs_of(given)
    in_memory = [anndata.read_h5ad(files[0]), files[1]]
    tokenize(in_memory, tmp_path / "out.dataset", GENES, progress=False)
    assert set(read_corpus(tmp_path / "out.dataset").obs["file"]) == {"AnnData 0", "b.zarr"}


def test_columns_of_obs_are_united(tmp_path):
    columns = [
        {"n": np.arange(60), "t": list("ab") * 30, "x": np.arange(60), "b": [True, False] * 30},
        {"n": np.arange(60) / 2, "t": pandas.Categorical(list("cd") * 30), "b": [False, True] * 30},
        {"t": np.arange(60), "x": ["y"] * 60},
    ]
    paths = [
        write_h5ad(tmp_path / f"{i}.h5ad", sp.csr_matrix(np.ones((60, 12), np.float32)), obs=obs)
        for i, obs in enumerate(columns)
    ]
    report = tokenize(paths, tmp_path / "out.dataset", GENES, obs=["n", "t", "x", "b"], progress=False)
    assert report.n_cells_written == 180
    obs = read_corpus(tmp_path / "out.dataset").obs
    assert obs["n"].tolist() == [*map(float, range(60)), *(np.arange(60) / 2).tolist(), *[None] * 60]
    assert obs["t"].tolist() == [*list("ab") * 30, *list("cd") * 30, *map(str, range(60))]
    assert obs["x"].tolist() == [*map(str, range(60)), *[None] * 60, *["y"] * 60]
    assert obs["b"].tolist() == [*[True, False] * 30, *[False, True] * 30, *[None] * 60]
    with pytest.raises(InputError, match="no obs column 'z' in any of 3 inputs; they have n, t, x, b"):
        tokenize(paths, tmp_path / "no.dataset", GENES, obs=["z"], progress=False)
    large = write_h5ad(
        tmp_path / "large.h5ad", sp.csr_matrix(np.ones((60, 12), np.float32)), obs={"n": np.full(60, 2**60)}
    )
    with pytest.raises(
        InputError, match="obs column 'n' holds integers up to 1152921504606846976 in one input, and in another"
    ):
        tokenize([*paths, large], tmp_path / "no.dataset", GENES, obs=["n"], progress=False)
    with pytest.raises(InputError, match="'file' and the column of the inputs' names have one name"):
        tokenize(paths, tmp_path / "no.dataset", GENES, obs=["file"], progress=False)
    assert tree(tmp_path) == ["0.h5ad", "1.h5ad", "2.h5ad", "large.h5ad", "out.dataset"]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_shards_written_in_any_order_are_one_corpus(files, tmp_path, order):
    medians = corpus_medians(files, GENES, progress=False)
    tokenize(files, tmp_path / "whole.dataset", GENES, medians, progress=False)
    for k in order:
        assert not (tmp_path / "out.dataset").exists()
        report = tokenize(files, tmp_path / "out.dataset", GENES, medians, shard=(k, 3), progress=False)
        assert ("inputs are missing: the corpus appears with the last" in str(report)) == (k != order[-1])
    assert report.n_missing == 0
    assert len(report.files) == N
    one, other = (read_corpus(tmp_path / name) for name in ("whole.dataset", "out.dataset"))
    assert cells_of(one) == cells_of(other)
    assert one.obs["file"].tolist() == other.obs["file"].tolist()
    assert tree(tmp_path / "whole.dataset") == tree(tmp_path / "out.dataset")
    for shard, message in (((0, 3), "shard must be an integer in"), ((1, 2, 3), r"shard must be \(k, n\)")):
        with pytest.raises(InputError, match=message):
            tokenize(files, tmp_path / "no", GENES, medians, shard=shard, progress=False)
    for options in ({}, {"medians": medians, "output": "out.npz"}):
        with pytest.raises(InputError, match="shards need inputs on disk, a folder to write, and medians"):
            tokenize(files, tmp_path / options.get("output", "no"), GENES, options.get("medians"), shard=(1, 2))


def test_shards_of_processes_at_the_same_time(files, tmp_path):
    medians = tmp_path / "medians.json"
    medians.write_text(json.dumps(corpus_medians(files, GENES, progress=False)))
    (tmp_path / "tokens.json").write_text(json.dumps({name: i for i, name in enumerate(GENES.names)}))
    command = [sys.executable, "-m", "corrmask_fast", "tokenize", *map(str, files), "-o", str(tmp_path / "out.dataset")]
    command += ["--tokens", str(tmp_path / "tokens.json"), "--medians", str(medians), "--no-progress"]
    ranks = [subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"}) for rank in range(2)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    tokenize(files, tmp_path / "whole.dataset", GENES, medians, progress=False)
    assert cells_of(read_corpus(tmp_path / "out.dataset")) == cells_of(read_corpus(tmp_path / "whole.dataset"))


def test_an_interrupted_run_goes_on_with_the_files_that_are_missing(files, tmp_path, monkeypatch):
    from corrmask_fast.cells import tokenize_task

    encode, done = tokenize_task.Task._encode, []

    def interrupted(self, number, *rest):
        if number == 2 and not monkeypatched:
            raise KeyboardInterrupt
        done.append(number)
        return encode(self, number, *rest)

    monkeypatched: list[int] = []
    monkeypatch.setattr(tokenize_task.Task, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize(files, tmp_path / "out.dataset", GENES, progress=False)
    parts = tmp_path / "out.dataset.parts"
    assert tree(parts) == [
        "medians.json", "part-00000.arrow", "part-00000.json", "part-00001.arrow", "part-00001.json", "plan.json"
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"holds parts of another run \(it differs in: max_length\); remove that"):
        tokenize(files, tmp_path / "out.dataset", GENES, max_length=5, progress=False)
    monkeypatched.append(1)
    monkeypatch.setattr(tokenize_task, "exact_medians", None)  # those found before count
    report = tokenize(files, tmp_path / "out.dataset", GENES, progress=False)
    assert done == [0, 1, 2, 3]
    assert len(report.files) == N
    monkeypatch.undo()
    tokenize(files, tmp_path / "whole.dataset", GENES, progress=False)
    assert cells_of(read_corpus(tmp_path / "out.dataset")) == cells_of(read_corpus(tmp_path / "whole.dataset"))
    assert tree(tmp_path) == ["in", "out.dataset", "whole.dataset"]


def test_a_file_that_was_changed_since_is_noticed(files, tmp_path, monkeypatch):
    from corrmask_fast.cells import tokenize_task

    encode = tokenize_task.Task._encode
    monkeypatch.setattr(
        tokenize_task.Task, "_encode", lambda self, number, *rest: encode(self, number, *rest) if number < 1 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        tokenize(files, tmp_path / "out.dataset", GENES, progress=False)
    monkeypatch.undo()
    files[3].touch()
    with pytest.raises(InputError, match="it differs in: inputs"):
        tokenize(files, tmp_path / "out.dataset", GENES, progress=False)


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan])
def test_what_is_wrong_with_one_file_names_it_and_leaves_nothing(files, tmp_path, bad):
    counts = some_counts()
    counts[7, 3] = bad
    files[2].unlink()
    write_h5ad(files[2], sp.csr_matrix(counts))
    for output in ("out.dataset", "out.npz"):
        with pytest.raises(
            InputError, match=r"counts must be whole numbers >= 0; .*a.h5ad has .* in cell cell7, gene ENSG003"
        ):
            tokenize(files, tmp_path / output, GENES, progress=False)
    assert tree(tmp_path) == ["in"]
    other = Vocabulary(("<pad>", "<mask>", "X", *NAMES[3:6]))
    mouse = write_h5ad(tmp_path / "in" / "mouse.h5ad", sp.csr_matrix(some_counts()), index=[f"m{i}" for i in range(12)])
    with pytest.raises(InputError, match=r"no gene of .*mouse.h5ad is in the vocabulary"):
        tokenize([files[0], mouse], tmp_path / "out.dataset", other, dict.fromkeys(NAMES, 1.0), progress=False)
    assert tree(tmp_path) == ["in"]


def test_the_vocabulary_of_the_files_themselves(files, tmp_path):
    assert set(vocabulary_of(files).names[2:]) == set(NAMES)
    tokenize(files, tmp_path / "out.dataset", progress=False)
    corpus = read_corpus(tmp_path / "out.dataset")
    assert corpus.vocabulary.names == vocabulary_of(files).names
    other = write_h5ad(tmp_path / "other.h5ad", sp.csr_matrix(some_counts()), index=[f"x{i}" for i in range(12)])
    with pytest.warns(UserWarning, match=r"other.h5ad shares 0 of its 12 genes' names with the inputs before it"):
        assert len(vocabulary_of([files[0], other]).names) == 26
    named = write_h5ad(
        tmp_path / "named.h5ad", sp.csr_matrix(some_counts()), index=[f"x{i}" for i in range(12)], var={"ids": NAMES}
    )
    assert vocabulary_of(named, gene_column="ids").names[2:] == NAMES


def test_the_command_line(files, tmp_path, capsys):
    assert main(["medians", *map(str, files), "-o", str(tmp_path / "m.json"), "--no-progress"]) == 0
    assert "medians of 12 genes written to" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text()) == corpus_medians(files, progress=False)
    arguments = [
        "tokenize",
        str(files[0].parent),
        "-o",
        str(tmp_path / "out.dataset"),
        "--medians",
        str(tmp_path / "m.json"),
    ]
    assert main([*arguments, "--shard", "2/2", "--no-progress"]) == 0
    assert "2 of 4 inputs are missing" in capsys.readouterr().out
    assert main([*arguments, "--shard", "1/2", "--file-column", "origin", "--no-progress"]) == 2
    assert "it differs in: --file-column" in capsys.readouterr().err
    assert main([*arguments, "--shard", "1/2", "--no-progress"]) == 0
    out = capsys.readouterr().out
    assert "input   cells  written" in out
    assert read_corpus(tmp_path / "out.dataset").n_cells > 100
    for more, message in (
        ((str(files[0]),), "there is no output; give -o OUT"),
        (
            (str(files[0]), "-o", str(tmp_path / "x"), "--shard", "1/2"),
            "shards need inputs on disk, a folder to write, and medians",
        ),
    ):
        assert main(["tokenize", *more, "--no-progress"]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["tokenize", str(files[0]), "-o", str(tmp_path / "x"), "--shard", "3/2"])
    assert "must be K/N with K from 1 to N, such as 3/16; got '3/2'" in capsys.readouterr().err
    assert main(["medians", str(files[0]), "-o", str(tmp_path / "m.txt"), "--no-progress"]) == 2
    assert "the medians must go to a file ending in .json" in capsys.readouterr().err
    assert main(["tokenize", str(files[0]), str(tmp_path / "single.npz"), "--no-progress"]) == 0
    assert "file" not in read_corpus(tmp_path / "single.npz").obs


def test_more_files_than_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr("corrmask_fast.cells.sources.KEPT_OPEN", 2)
    paths = [
        write_h5ad(tmp_path / f"{i}.h5ad", (sp.csc_matrix if i % 2 else sp.csr_matrix)(some_counts(20, seed=i)))
        for i in range(5)
    ]
    tokenize(paths, tmp_path / "few.dataset", GENES, progress=False)
    monkeypatch.undo()
    tokenize(paths, tmp_path / "all.dataset", GENES, progress=False)
    assert cells_of(read_corpus(tmp_path / "few.dataset")) == cells_of(read_corpus(tmp_path / "all.dataset"))


def test_a_column_without_a_value_in_one_file_has_the_type_of_the_others(tmp_path):
    ones = sp.csr_matrix(np.ones((20, 12), np.float32))
    a = write_h5ad(tmp_path / "a.h5ad", ones, obs={"age": np.arange(20) / 2})
    b = write_h5ad(tmp_path / "b.h5ad", ones, obs={"age": pandas.Categorical([None] * 20)})
    for k, files in enumerate(([a, b], [b, a])):
        for output in (f"{k}.dataset", f"{k}.npz"):
            tokenize(files, tmp_path / output, GENES, obs=iter(["age"]), progress=False)
            ages = read_corpus(tmp_path / output).obs["age"].tolist()
            assert (ages if k == 0 else ages[::-1])[20:] == [None] * 20
            assert sorted(age for age in ages if age is not None) == (np.arange(20) / 2).tolist()


def test_a_shard_that_fails_or_comes_late_harms_nobody(files, tmp_path, monkeypatch):
    medians = corpus_medians(files, GENES, progress=False)
    counts = some_counts()
    counts[7, 3] = 0.5
    files[0].unlink()
    write_h5ad(files[0], sp.csr_matrix(counts))
    with pytest.raises(InputError, match="counts must be whole numbers"):
        tokenize(files, tmp_path / "out.dataset", GENES, medians, shard=(1, 2), progress=False)
    assert (tmp_path / "out.dataset.parts" / "plan.json").exists()  # another shard may be at work
    tokenize(files, tmp_path / "out.dataset", GENES, medians, shard=(2, 2), progress=False)
    assert (tmp_path / "out.dataset.parts" / "part-00003.json").exists()
    good = files[1:]
    for k in (1, 2, 5, 1):  # the fifth of five has no file; the first comes once more, when all is done
        report = tokenize(good, tmp_path / "good.dataset", GENES, medians, shard=(k, 5), progress=False)
        if k == 2:
            tokenize(good, tmp_path / "good.dataset", GENES, medians, shard=(3, 5), progress=False)
    assert len(report.files) == 3
    assert report.n_cells_written == read_corpus(tmp_path / "good.dataset").n_cells
    with pytest.raises(InputError, match="exists already"):
        tokenize(good, tmp_path / "good.dataset", GENES, medians, shard=(1, 3), max_length=5, progress=False)
    with pytest.raises(InputError, match="shards need inputs on disk"):
        tokenize([anndata.read_h5ad(good[1])], tmp_path / "x", GENES, medians, shard=(1, 2), progress=False)


def test_ranks_that_begin_together_share_the_folder(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    from corrmask_fast.cells.corpus_parts import CorpusParts

    for k in range(50):
        parts = [CorpusParts(tmp_path / f"{k}", {"a": k}, 3) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(CorpusParts.begin, parts))


@pytest.mark.parametrize("change", ["gene_mapping", "symbols", "a chunk of a zarr store", "version"])
def test_a_run_goes_on_with_the_same_input_alone(files, tmp_path, monkeypatch, change):
    from corrmask_fast.cells import tokenize_task

    mapping = tmp_path / "mapping.json"
    mapping.write_text(json.dumps({"OLD": NAMES[0]}))
    encode = tokenize_task.Task._encode
    monkeypatch.setattr(
        tokenize_task.Task, "_encode", lambda self, number, *rest: encode(self, number, *rest) if number < 1 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        tokenize(files, tmp_path / "out.dataset", GENES, gene_mapping=mapping, progress=False)
    monkeypatch.undo()
    genes, field = GENES, {"symbols": "vocabulary", "a chunk of a zarr store": "inputs"}.get(change, change)
    if change == "gene_mapping":
        mapping.write_text(json.dumps({"OLD": NAMES[1]}))
    elif change == "symbols":
        genes = Vocabulary(GENES.names, {name: f"OTHER{i}" for i, name in enumerate(NAMES)})
    elif change == "version":
        monkeypatch.setattr(tokenize_task, "__version__", "0.0.0")
    else:
        chunk = next(path for path in sorted(files[1].rglob("*")) if path.is_file() and "data" in str(path))
        chunk.touch()
    with pytest.raises(InputError, match=rf"it differs in: {field}"):
        tokenize(files, tmp_path / "out.dataset", genes, gene_mapping=mapping, progress=False)


def test_damaged_parts_are_noticed(files, tmp_path, monkeypatch):
    from corrmask_fast.cells import tokenize_task

    encode = tokenize_task.Task._encode
    monkeypatch.setattr(
        tokenize_task.Task, "_encode", lambda self, number, *rest: encode(self, number, *rest) if number < 3 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        tokenize(files, tmp_path / "out.dataset", GENES, progress=False)
    monkeypatch.undo()
    parts = tmp_path / "out.dataset.parts"
    report, medians = (parts / "part-00002.json").read_text(), (parts / "medians.json").read_text()
    for name, text in (("part-00002.json", "[]"), ("medians.json", "5"), ("plan.json", "[]"), ("plan.json", "{")):
        before = (parts / name).read_text()
        (parts / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name} is not a readable|it differs in"):
            tokenize(files, tmp_path / "out.dataset", GENES, progress=False)
        (parts / name).write_text(before)
    (parts / "part-00000.arrow").write_bytes(b"")  # these two are written anew
    (parts / "part-00001.arrow").unlink()
    assert (report, medians) == ((parts / "part-00002.json").read_text(), (parts / "medians.json").read_text())
    tokenize(files, tmp_path / "out.dataset", GENES, progress=False)
    tokenize(files, tmp_path / "whole.dataset", GENES, progress=False)
    assert cells_of(read_corpus(tmp_path / "out.dataset")) == cells_of(read_corpus(tmp_path / "whole.dataset"))


def test_edges_of_inputs_and_outputs(files, tmp_path, capsys):
    cells = anndata.read_h5ad(files[0])
    with pytest.raises(InputError, match="an AnnData is given twice"):
        tokenize([cells, cells], tmp_path / "x", GENES, progress=False)
    with pytest.raises(InputError, match=r"lies inside .*b.zarr, which is read here"):
        tokenize(files, files[1] / "x", GENES, progress=False)
    empty = [write_h5ad(tmp_path / f"e{i}.h5ad", sp.csr_matrix((60, 12), dtype=np.float32)) for i in range(2)]
    with pytest.raises(InputError, match="none of the 120 cells of 2 inputs has a count in a gene of the vocabulary"):
        tokenize(empty, tmp_path / "x", GENES, progress=False)
    assert not list(tmp_path.glob("x*"))
    for options, message in (
        ({"obs": [["a"]]}, "obs must be a name of a column"),
        ({"obs_names": 5}, "obs_names must be a name of a column; got 5"),
        ({"file_column": ["a"]}, "file_column must be a name of a column"),
        ({"allow_fractional": "no"}, "allow_fractional must be True or False; got 'no'"),
        ({"target_sum": "many"}, "target_sum must be a number"),
    ):
        with pytest.raises(InputError, match=message):
            tokenize(files, tmp_path / "x", GENES, progress=False, **options)
    with pytest.raises(InputError, match="vocabulary must be a Vocabulary; got 5"):
        tokenize(files, tmp_path / "x", 5, progress=False)
    for name in ("out.npz", "out.npz"):  # beside the inputs, and once more
        assert main(["tokenize", str(files[0].parent), "-o", str(files[0].parent / name), "--no-progress"]) == 0
    capsys.readouterr()
