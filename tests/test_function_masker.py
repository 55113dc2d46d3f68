"""A strategy of the user's own: what its function gets and may return, and that it goes wherever a built-in goes."""

from __future__ import annotations

import copy
import pickle
import re
import textwrap

import numba
import numpy as np
import pytest
import torch
from proposals import by_tens, by_tens_compiled
from torch.utils.data import DataLoader

from corrmask_fast import (
    CorpusDataset,
    DataCollatorForCorrMask,
    FunctionMasker,
    InputError,
    Linear,
    RandomMasker,
    ValueReplacement,
    audit_all_strategies,
    audit_masking,
    make_masker,
    read_corpus,
    reference,
)
from corrmask_fast.cli.main import main
from corrmask_fast.testing import make_graph, make_vocabulary

GENES = make_vocabulary(60)
CELLS = [np.random.default_rng(seed).permutation(60)[: 20 + seed].tolist() for seed in range(16)]
CELLS = [[2 + gene for gene in cell] for cell in CELLS]
ROWS = torch.tensor([cell[:20] for cell in CELLS])


@numba.njit
def fails_at_ten(tokens, words):
    if tokens[0] == CELLS_FIRST:
        raise ValueError("no such gene")
    return np.zeros(1, np.int64), np.zeros(0, np.int64)


CELLS_FIRST = CELLS[10][0]


def masker_of(propose=by_tens, **given):
    return FunctionMasker(GENES, propose, **{"mlm_probability": 0.4, **given})


def test_what_the_function_gets():
    seen = []

    def note(tokens, words):
        seen.append((tokens, words))
        return np.ones(tokens.size)

    genes = make_vocabulary(30, v2=True)
    row = torch.tensor([[0, 2, 9, 8, 3, 7, 0], [0] * 7])  # <cls> and <eos> around, padding, and a row of it
    FunctionMasker(genes, note, seed=7)(row, draw_ids=torch.tensor([5, 6]))
    ((tokens, words),) = seen
    assert (tokens.tolist(), tokens.dtype, words.dtype) == ([9, 8, 7], np.int64, np.uint32)
    assert words.tolist() == [list(reference.words(7, 5, column, 2**32 - 3)) for column in (1, 2, 4)]


def test_groups_are_masked_together():
    positions = masker_of(mlm_probability=0.3)(ROWS, epoch=0).masked_positions
    for row, columns in zip(ROWS // 10, positions, strict=True):
        hidden = [sum(row[columns] == kind) / sum(row == kind) for kind in row[columns].unique()]
        assert sum(share < 1 for share in hidden) <= 1  # the last one is cut at the quota


@pytest.mark.parametrize("propose", [by_tens, by_tens_compiled])
def test_a_row_is_masked_the_same_anywhere(propose):
    masker, draws = masker_of(propose), torch.arange(len(ROWS))
    together = masker(ROWS, draw_ids=draws)
    assert torch.equal(together.labels, masker_of()(ROWS, draw_ids=draws).labels)
    for row in (0, 7):
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), ROWS[row : row + 1]], dim=1)
        alone = masker(padded, draw_ids=draws[row : row + 1])
        assert torch.equal(alone.labels[0, 3:], together.labels[row])
        assert torch.equal(alone.input_ids[0, 3:], together.input_ids[row])


def test_many_rows_by_several_threads_are_the_same():
    rows = ROWS.repeat(3000, 1)
    assert torch.equal(masker_of(by_tens_compiled)(rows, epoch=1).labels[-16:], masker_of()(ROWS, epoch=1).labels)


def test_nothing_proposed_and_no_ratio_are_random_masking():
    expected = RandomMasker(GENES, mlm_probability=0.4)(ROWS, epoch=2)
    nothing = masker_of(lambda *_: (np.zeros(1, np.int64), np.empty(0)))
    for masker in (nothing, masker_of(lambda tokens, _: 0 * tokens), masker_of(structural_ratio=0.0)):
        assert torch.equal(masker(ROWS, epoch=2).labels, expected.labels)


def test_rates_and_draws_are_those_of_every_strategy():
    masker = masker_of(mlm_probability=Linear(0.5, 0.1, 10))
    first = masker(ROWS)
    assert masker.draw_counter.item() == len(ROWS)
    masker.set_step(10)
    assert (masker(ROWS).labels != -100).sum() == 2 * len(ROWS) < (first.labels != -100).sum()
    again = masker_of(mlm_probability=Linear(0.5, 0.1, 10))
    again.load_state_dict(masker.state_dict())
    again.set_step(10)
    assert torch.equal(again(ROWS).labels, masker(ROWS).labels)


def test_values_are_hidden_by_it():
    hide = ValueReplacement.scgpt(masker_of(mask_replace_prob=1.0, random_replace_prob=0.0))
    out = hide(ROWS, torch.full(ROWS.shape, 3.0), epoch=0)
    assert torch.equal(out.values == -1, out.masked)
    assert (out.masked.sum(1) == 8).all()


@pytest.mark.parametrize("propose", [by_tens, by_tens_compiled])
@pytest.mark.parametrize("context", [None, "fork", "spawn"])
def test_workers_mask_the_same(propose, context):
    collator = DataCollatorForCorrMask(masker_of(propose))
    collator.set_epoch(4)
    dataset, more = CorpusDataset(read_corpus(CELLS, GENES)), {}
    if context is not None:
        more = {"num_workers": 1, "multiprocessing_context": context}
    batches = list(DataLoader(dataset, batch_size=5, collate_fn=collator, **more))
    expected = masker_of()(batches[1]["input_ids"].where(batches[1]["labels"] == -100, batches[1]["labels"]), epoch=4)
    assert torch.equal(batches[1]["labels"], expected.labels)


@pytest.mark.parametrize("propose", [by_tens, by_tens_compiled])
def test_copies_are_the_same(propose):
    masker = masker_of(propose, name="tens", version=2)
    for again in (copy.deepcopy(masker), pickle.loads(pickle.dumps(masker))):
        assert torch.equal(again(ROWS, epoch=3).labels, masker(ROWS, epoch=3).labels)
        assert (again.name, again.version, again.label) == ("tens", 2, "tens")


def test_a_run_resumes_with_the_same_name_and_version():
    saved = masker_of(version="a").state_dict()
    masker_of(version="a").load_state_dict(saved)
    for other in (masker_of(version="b"), masker_of(version="a", name="tens")):
        with pytest.raises(InputError, match=r"the saved masker used function .*; resume with the function of the fir"):
            other.load_state_dict(saved)


# ------------------------------------------------------------------------------------------------- what is refused


BAD_ANSWERS = [
    (None, "propose must return groups, (indptr, columns), or a weight for each token, 20 of them; own returned N"),
    (np.ones(19), "20 of them; own returned array"),
    (np.ones((20, 1)), "20 of them; own returned array"),
    (["A"] * 20, "20 of them; own returned ["),
    (np.full(20, np.nan), "weights must be finite and >= 0; own returned nan for row 0, column 0; give 0"),
    (np.arange(20) - 3.0, "own returned -3.0 for row 0, column 0"),
    (np.where(np.arange(20) == 7, np.inf, 1), "own returned inf for row 0, column 7"),
    ((np.array([0, 1]), np.array([20])), "columns must be places in tokens, [0, 20); own returned 20 for row 0"),
    ((np.array([0, 1]), np.array([-1])), "[0, 20); own returned -1 for row 0; give places, not tokens"),
    ((np.array([0, 2]), np.array([1])), "indptr must rise from 0 to the number of columns, 1; own returned [0, 2]"),
    ((np.array([1, 1]), np.array([1])), "indptr must rise from 0"),
    ((np.array([0, 2, 1, 3]), np.arange(3)), "indptr must rise from 0"),
    ((np.empty(0), np.empty(0)), "indptr must rise from 0"),
    ((np.array([0, 1]), np.array([1.0])), "whole numbers; own returned ("),
    ((np.array([0, 1]),), "whole numbers; own returned ("),
]


@pytest.mark.parametrize(("answer", "message"), BAD_ANSWERS, ids=lambda value: str(value)[:30])
def test_answers_that_are_none(answer, message):
    with pytest.raises(InputError) as error:
        masker_of(lambda *_: answer, name="own")(ROWS, epoch=0)
    assert message in str(error.value)


@pytest.mark.parametrize("number", [4, 7, 11])
def test_answers_of_compiled_functions_that_are_none(number):
    answer, message = BAD_ANSWERS[number]
    indptr, columns = answer if isinstance(answer, tuple) else (None, None)
    compiled = numba.njit(lambda *_: answer) if indptr is None else numba.njit(lambda *_: (indptr, columns))
    with pytest.raises(InputError, match=re.escape(message)):
        masker_of(compiled, name="own")(ROWS, epoch=0)


def test_a_compiled_function_that_returns_no_list():
    square = numba.njit(lambda tokens, _: tokens.reshape((2, 10)))
    with pytest.raises(InputError, match=r"or a weight for each token, 20 of them; own returned array"):
        masker_of(square, name="own")(ROWS, epoch=0)


def test_a_function_that_fails_names_the_row():
    message = "fails_at_ten failed in row 10: ValueError: no such gene"
    for propose in (fails_at_ten, fails_at_ten.py_func):
        with pytest.raises(InputError, match=message) as error:
            masker_of(propose)(ROWS, epoch=0)
        assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize("propose", [by_tens, by_tens_compiled])
def test_tokens_outside_the_vocabulary_raise_before_the_function_sees_them(propose):
    rows = ROWS.clone()
    rows[3, 4] = 62
    with pytest.raises(InputError, match=r"token 62 in row 3, column 4 must be in \[0, 62\)"):
        masker_of(propose)(rows, epoch=0)


def test_what_cannot_be_made():
    with pytest.raises(InputError, match=r"propose must be a function of \(tokens, words\); got 'tens'"):
        FunctionMasker(GENES, "tens")
    with pytest.raises(InputError, match="name must be a text that is not empty; got ''"):
        masker_of(name="")
    with pytest.raises(InputError, match=r"version must be a number or a text; got 1\.5"):
        masker_of(version=1.5)
    with pytest.raises(InputError, match="the function's answer is what priorities are drawn from"):
        masker_of()(ROWS, epoch=0, priorities=ROWS)


def test_torch_compile_is_refused():
    torch.compiler.reset()
    masker = masker_of()
    with pytest.raises(Exception, match=r"neither torch\.compile nor a CUDA graph"):
        torch.compile(lambda rows: masker(rows, epoch=0), fullgraph=True, backend="aot_eager")(ROWS)


# ------------------------------------------------------------------------------------------- audit, command line, runs


@pytest.fixture
def folder(tmp_path, monkeypatch, make_corpus):
    """A corpus, its graph, and a module of strategies in PYTHONPATH."""
    from corrmask_fast import write_corpus

    corpus = make_corpus(60, 60, seed=3, max_length=40)
    write_corpus(corpus, tmp_path / "cells.npz")
    make_graph(corpus.vocabulary).save(tmp_path / "graph.safetensors")
    text = """
        import numpy as np
        from corrmask_fast import FunctionMasker, RandomMasker

        def propose(tokens, words):
            tens = tokens // 10
            kinds = np.unique(tens)
            kinds = kinds[words[: kinds.size, 0].argsort(kind="stable")]
            groups = [np.flatnonzero(tens == kind) for kind in kinds]
            return np.cumsum([0, *map(len, groups)]), np.concatenate(groups)

        def Tens(vocabulary, **parameters):
            return FunctionMasker(vocabulary, propose, name="Tens", **parameters)

        def nothing(vocabulary, **parameters): ...
        def few(vocabulary, *, seed): ...
        number = 3
    """
    (tmp_path / "own_strategies.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_audit_takes_it(folder):
    corpus, graph = read_corpus(CELLS, GENES), make_graph(GENES)
    called = []

    def propose(tokens, words):
        called.append(1)
        return by_tens(tokens, words)

    masker = masker_of(propose, name="Tens")
    report = audit_masking(masker, corpus, graph, progress=False)
    assert len(called) == corpus.n_cells  # not for the control
    every = audit_all_strategies(corpus, graph, mlm_probability=0.4, maskers=[masker], progress=False)
    assert every["Tens"].hits == report["Tens"].hits
    assert np.array_equal(every["Random (lambda = 0)"].times_masked, report["control (lambda = 0)"].times_masked)
    with pytest.raises(InputError, match="two lines cannot be called 'Span'; give the masker another name"):
        audit_all_strategies(corpus, graph, maskers=[masker_of(name="Span")], progress=False)


def test_the_command_line_takes_it(folder, capsys):
    files = ["audit", "cells.npz", "--graph", "graph.safetensors", "--strategy", "own_strategies:Tens", "--no-progress"]
    assert main([*files, "--mlm-probability", "0.3", "--structural-ratio", "0.8"]) == 0
    line = capsys.readouterr().out.splitlines()[4]
    assert line.startswith("Tens ")
    assert main([*files, "--all"]) == 0
    assert "\nTens " in capsys.readouterr().out
    assert make_masker("own_strategies:Tens", vocabulary=GENES, structural_ratio=0.5).structural_ratio == 0.5


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("missing_module:Tens", "cannot be imported (ModuleNotFoundError: No module named 'missing_module'); is the"),
        ("own_strategies:Twenties", "cannot be imported (AttributeError: "),
        ("own_strategies:number", "must be a function of (vocabulary, **parameters); it is 3"),
        ("own_strategies:nothing", "must return a masker, such as FunctionMasker(…); it returned None"),
        ("own_strategies:few", "own_strategies:few failed (TypeError: few() got an unexpected keyword argument"),
        ("own_strategies:", "strategy must be one of random, weighted, span"),
    ],
)
def test_strategies_that_are_none(folder, fails, strategy, message):
    assert message in fails("audit", "cells.npz", "--graph", "graph.safetensors", "--strategy", strategy)


def test_pretraining_takes_it_and_a_file_alone_cannot_name_it(folder, fails):
    pytest.importorskip("transformers")
    pytest.importorskip("matplotlib")
    sizes = {"hidden-size": 16, "layers": 1, "heads": 2, "intermediate-size": 16, "max-steps": 2, "workers": 1}
    options = [text for name, value in (sizes | {"save-every": 1}).items() for text in (f"--{name}", str(value))]
    run = ["pretrain", "cells.npz", "--out", "run", "--device", "cpu", "--no-progress", *options]
    assert main([*run, "--strategy", "own_strategies:Tens"]) == 0
    resumed = ["pretrain", "cells.npz", "--out", "run", "--resume", "--no-progress"]
    message = "run/settings.toml names own_strategies:Tens, and only what the command line names is imported, for this"
    assert message in fails(*resumed)
    assert main([*resumed, "--strategy", "own_strategies:Tens", "--max-steps", "3"]) == 0
    text = (folder / "own_strategies.py").read_text()
    (folder / "own_strategies_2.py").write_text(text.replace('name="Tens"', 'name="Tens", version=2'))
    message = "was made with version=0, this run has version=2"
    assert message in fails(*resumed, "--strategy", "own_strategies_2:Tens", "--max-steps", "4")
