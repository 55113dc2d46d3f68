"""The benches of a device as far as the CPU can try them: contestants mask right, goals and failures are reported."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from harness import records
from harness.atlas import made_up_corpus
from harness.goals import compare
from harness.timing import Timing
from torch.utils.flop_counter import FlopCounterMode
from torch_corrmask import TorchCorrMask

from corrmask_fast import CorrMasker, DependencyGraph, Vocabulary, get_num_threads, reference, set_num_threads
from corrmask_fast.masking.stock import stock_collator
from corrmask_fast.testing import Case, cases, draw_ids, make_graph, make_vocabulary
from corrmask_fast.training.run import make_model
from gpu import (
    counts,
    devices,
    exercise,
    graphs,
    masking,
    pages,
    predict_step,
    profiling,
    report,
    run,
    strategies,
    training,
    workloads,
)

CPU = torch.device("cpu")


class PhiloxWords:
    """The words of SPEC 3 as fractions: with them the rival must give the oracle's masks."""

    def __init__(self, draws, seed):
        self.draws, self.seed = [int(draw) % 2**64 for draw in draws], seed

    def columns(self, ids):
        words = [[reference.words(self.seed, draw, column, 0) for column in range(ids.shape[1])] for draw in self.draws]
        return list(torch.tensor(words, dtype=torch.float64).permute(2, 0, 1) / 2**32)

    def neighbors(self, row, column, j):
        keys = [
            reference.words(self.seed, self.draws[r], c, 1 + n // 4)[n % 4]
            for r, c, n in zip(row.tolist(), column.tolist(), j.tolist(), strict=True)
        ]
        return torch.tensor(keys, dtype=torch.float64) / 2**32


@pytest.mark.parametrize("parameters", [{}, {"structural_ratio": 1.0, "mlm_probability": 0.6}, {"max_partners": 1}])
def test_corrmask_in_torch_is_the_oracle_given_its_words(parameters):
    padded = next(case for case in cases() if case.name == "right padding")
    graph = make_graph(make_vocabulary(300), degree=20, seed=3)
    ids = np.random.default_rng(1).integers(2, 302, (2, 200))  # a gene may stand in a row twice
    for case in (padded, Case("repeats", graph, ids)):
        draws = draw_ids(case.rows, seed=7)
        expected = case.expected(draw_ids=draws, **parameters)
        rival = TorchCorrMask(case.graph, CPU, words=PhiloxWords(draws, 0), **parameters)
        out, labels = rival(torch.from_numpy(case.input_ids))
        assert (labels.numpy() == expected.labels).all()
        assert (out.numpy() == expected.input_ids).all()


def test_corrmask_in_torch_masks_the_budget_and_follows_the_graph():
    names = tuple(f"G{i}" for i in range(400))
    pairs = [(f"G{i}", f"G{i + 1}") for i in range(0, 400, 2)]
    graph = DependencyGraph.from_edges(pairs, Vocabulary(("<pad>", "<mask>", *names)))
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(np.stack([generator.permutation(400) + 2 for _ in range(50)]))
    torch.manual_seed(0)
    _, labels = TorchCorrMask(graph, CPU, structural_ratio=1.0)(ids)
    masked = labels != -100
    assert (masked.sum(1) == 60).all()
    hit = np.zeros((50, 402), bool)
    np.put_along_axis(hit, ids.numpy(), masked.numpy(), 1)
    whole = hit[:, 2::2] & hit[:, 3::2]
    assert (whole.sum(1) == 30).all()  # every masked gene with its partner
    share = hit[:, 2:].mean(0)
    assert abs(share - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 50)


def test_torch_mask_tokens_is_hugging_face_s():
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(50))))
    ids = torch.randint(2, 52, (7, 90))
    special = torch.rand(ids.shape) < 0.1
    torch.manual_seed(5)
    theirs = stock_collator(vocabulary).torch_mask_tokens(ids.clone(), special_tokens_mask=special)
    torch.manual_seed(5)
    ours = masking.torch_mask_tokens(ids.clone(), special, mask_token=1, vocab_size=vocabulary.size)
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


def test_the_atlas_is_the_same_for_any_number_of_threads():
    threads = get_num_threads()
    made = []
    for n in (1, 2):
        set_num_threads(n)
        made.append(made_up_corpus(1_100, 500, density=0.1, n_modules=10, max_length=60))
    set_num_threads(threads)
    assert np.array_equal(made[0].tokens, made[1].tokens)
    assert np.array_equal(made[0].indptr, made[1].indptr)
    assert made[0].lengths.max() == 60
    assert 0.06 < made[0].nnz / (1_100 * 500) < 0.12
    assert not np.array_equal(made[0].tokens, made_up_corpus(1_100, 500, max_length=60, seed=1).tokens)


def rows_of_run(path, run_name, us, case="masking"):
    """Rows as a run on a device would have them: all contestants at the largest batch, in so many microseconds."""
    shared = devices.described(CPU, records.conditions(3, {"columns": 2048}, devices.PACKAGES)) | {"run": run_name}
    timings = {name: Timing(value, value, value) for name, value in us.items()}
    rows = records.rows_of(case, masking.LARGE[0], timings, {}, {"bytes": 0, "detail": "", **shared})
    records.append(rows, path)
    return rows


def test_goals_are_judged_by_the_newest_rows_of_each_case(tmp_path):
    path = tmp_path / "gpu.csv"
    rows_of_run(path, "first", {masking.COPY: 100.0, masking.MASKER: 900.0})
    rows_of_run(path, "first", {training.ALONE: 1.0}, case="training")
    rows_of_run(path, "second", {masking.COPY: 100.0, masking.MASKER: 399.0, masking.TORCH_MASK: 300.0})
    rows = records.newest(records.read(path))
    assert [row["run"] for row in rows] == ["first", "second", "second", "second"]
    judged = compare(rows, run.GOALS)
    assert [(one.value, one.verdict) for one in judged if one.value is not None] == [(3.99, "met"), (1.33, "short")]
    assert {one.verdict for one in judged if one.value is None} == {"not run"}


def test_a_goal_of_a_difference_and_of_a_share():
    shared = {"batch": 12, "case": "training"}
    times = {training.OURS: 200.0, training.OFF: 199.0, training.ALONE: 3.0}
    rows = [shared | {"contestant": name, "p50_us": us} for name, us in times.items()]
    found = {one.goal.what: one for one in compare(rows, run.GOALS)}
    assert found["what masking adds to a step"].value == pytest.approx(0.5)
    assert found["masking alone, of a step"].value == pytest.approx(1.5)
    assert found["masking alone, of a step"].verdict == "short"
    assert found["what MAM adds to a step"].value is None
    slow = next(goal for goal in run.GOALS if goal.unit == "s")
    row = {"case": slow.case, "contestant": slow.ours, "batch": 100_000, "p50_us": 2.5e6}
    assert [one.value for one in compare([row], [slow])] == [2.5]


def test_stages_are_timed_through_the_seam():
    corpus = made_up_corpus(300, 120, density=0.3, n_modules=4)
    graph, seconds = graphs.build_timed(corpus, CPU, min_presence=5, min_cooccurrence=10)
    assert graph.indices.size
    assert {"read_sample", "make_columns", "rank_genes", "strongest_pairs", "correlate_pairs"} <= set(seconds)
    assert sum(seconds.values()) == pytest.approx(2 * seconds[graphs.TOTAL])


def test_without_a_device_the_reason_is_said(monkeypatch, capsys):
    if not devices.why_not():
        pytest.skip("there is a device")
    monkeypatch.setattr(sys, "argv", ["run.py", "--cases", "masking"])
    assert run.main() == 2
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err


def test_a_smoke_run_goes_on_after_a_case_that_fails(monkeypatch, capsys, tmp_path):
    def fail(_bench):
        raise AssertionError("planted")

    monkeypatch.setitem(run.RUN, "masking", fail)
    monkeypatch.setattr(
        sys, "argv", ["run.py", "--smoke", "--cases", "masking", "profile", "--results", str(tmp_path / "gpu.csv")]
    )
    assert run.main() == 1
    printed = capsys.readouterr()
    assert "planted" in printed.err
    assert "FAILED: masking" in printed.err
    assert "all (five partners)" in printed.out
    assert not (tmp_path / "gpu.csv").exists()  # a smoke run records nothing


def test_training_steps_are_of_the_paper_s_model(workload):
    small = replace(workloads.SMOKE, length=workload.size.length)
    race = training.training_race(workload, 2, small, CPU)
    assert [contestant.name for contestant in race] == [
        training.OFF,
        training.STOCK,
        training.COLLATOR,
        training.OURS,
        training.SPARSE,
        training.ALONE,
        training.LEARNED,
    ]
    for contestant in race:
        contestant.run()
    whole = workloads.Sizes().model
    assert (whole.hidden_size, whole.layers, whole.heads, whole.intermediate_size) == (256, 6, 4, 512)  # Table 5
    assert (whole.dropout, whole.max_length, whole.head) == (0.02, workloads.Sizes().length, "full")


@pytest.mark.parametrize("sparse", [False, True])
def test_what_is_predicted_counts_the_operations_and_weights_of_the_model(sparse):
    head, length, vocabulary = "masked" if sparse else "full", 40, 500
    settings = replace(workloads.SMOKE.model, max_length=length, head=head, dropout=0.02)
    model = make_model(vocabulary, 0, settings).train()
    ids = torch.arange(2, 2 + length).repeat(3, 1)
    positions = torch.arange(int(0.15 * length)).repeat(3, 1)
    labels = torch.full_like(ids, -100).scatter(1, positions, ids.gather(1, positions))
    with FlopCounterMode(display=False) as counted:
        model(ids, labels=labels, **({"masked_positions": positions} if sparse else {})).loss.backward()
    parts = {part.name: part for part in predict_step.groups_of(3, settings, vocabulary=vocabulary, sparse=sparse)}
    # With dropout the CPU multiplies twice forward and four times backward; flash attention computes the scores again.
    flops = parts["linear layers"].flops + parts["prediction head"].flops + parts["attention"].flops * 3 / 3.5
    assert counted.get_total_flops() == pytest.approx(flops)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert parts["AdamW"].bytes / 34 == pytest.approx(weights, rel=0.03)  # biases and layer norms are left out


def test_the_readme_shows_what_is_predicted():
    table = predict_step.table_of(workloads.Sizes().training_batches, workloads.Sizes().model)
    assert table in (records.ROOT / "bench" / "gpu" / "README.md").read_text(encoding="utf-8")
    assert predict_step.logits_gib(64, workloads.PAPER, sparse=False) == pytest.approx(64 * 2048 * 25_426 * 14 / 2**30)


def test_parts_differ_by_what_they_leave_out(workload):
    """The first writes its input, the third masks at random; each masks as many as it should."""
    from gpu.profiling import parts

    ids = torch.from_numpy(workload.rows(4))
    masked = {what: int((masker(ids, **how).labels != -100).sum()) for what, masker, how in parts(workload)}
    budget = int((CorrMasker(workload.graph)(ids).labels != -100).sum())
    assert list(masked.values()) == [0, 0] + [budget] * 5


# ------------------------------------------------------------------------------------------------------------- report


def test_steps_go_on_after_a_failure_and_keep_what_was_said(tmp_path, monkeypatch, capsys):
    def python(text, **how):
        return report.Step("a step", (sys.executable, "-c", text), 1, how.pop("limit_s", 60), **how)

    steps = {
        "fails": python("print('half way'); raise SystemExit(3)"),
        "slow": python("import time; time.sleep(60)", limit_s=1),
        "missing": python("", tool="no-such-tool"),
        "fine": python("import os; print('mode', os.environ['MODE'])", environment={"MODE": "plain"}),
    }
    monkeypatch.setattr(report, "STEPS", steps)
    monkeypatch.setattr(devices, "why_not", lambda: "")
    where = ["--keep", str(tmp_path / "keep"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(report, "RESULTS", tmp_path / "gpu.csv")
    monkeypatch.setattr(sys, "argv", ["report.py", *where])
    assert report.main() == 1
    printed = capsys.readouterr()
    assert "FAILED: fails, slow" in printed.err
    assert "half way" in printed.out
    assert "mode plain" in (tmp_path / "keep" / "fine.log").read_text()
    page = (tmp_path / "out" / "gpu.md").read_text()
    for line in ("failed: exit code 3", "failed: took longer than 1 s", "left out: no-such-tool is not on", "| ok |"):
        assert line in page
    steps["fails"] = python("")
    monkeypatch.setattr(sys, "argv", ["report.py", "--steps", "fails,report", *where])
    assert report.main() == 0  # this one alone was asked for; the others' ends are kept
    page = (tmp_path / "out" / "gpu.md").read_text()
    assert "exit code 3" not in page
    assert "took longer than 1 s" in page


def test_the_report_shows_what_was_measured(tmp_path):
    path = tmp_path / "gpu.csv"
    rows_of_run(path, "first", {masking.COPY: 100.0, masking.MASKER: 900.0})
    stages = {f"graph{where}, {name}": 1e6 for where in ("", " on the CPU") for name in ("rank_genes", "end to end")}
    rows_of_run(path, "second", stages, case="graph: 2000 genes")
    written = pages.write_report(records.newest(records.read(path)), [], tmp_path / "out")
    assert [one.name for one in written] == ["gpu.md", "gpu-masking.png", "gpu-graph.png"]
    page = written[0].read_text()
    (line,) = [line for line in page.splitlines() if "mask a batch, beside the copy" in line]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells == [
        "mask a batch, beside the copy",
        masking.COPY,
        "16,384",
        "100.0 µs",
        "900.0 µs",
        "9x",
        "≤ 4x",
        "short",
    ]
    assert "## graph: 2000 genes, 16,384" in page
    assert all(one.stat().st_size > 1_000 for one in written)


def test_a_report_of_nothing_says_how_to_measure(tmp_path):
    (page,) = pages.write_report([], [], tmp_path)
    assert "Nothing has been measured yet: `make gpu-report`" in page.read_text()


def test_without_a_device_the_report_says_why(monkeypatch, capsys):
    if not devices.why_not():
        pytest.skip("there is a device")
    for main, argv in ((report.main, ["report.py"]), (exercise.main, ["exercise.py"])):
        monkeypatch.setattr(sys, "argv", argv)
        assert main() == 2
        assert "PyTorch finds no CUDA device" in capsys.readouterr().err


def test_every_kernel_is_to_be_reached():
    launched = profiling.Launch("corrmask.cu", "corrmask_i64", 1, 256, 0)
    missed = exercise.unlaunched([launched])
    assert "corrmask.cu: corrmask_i32_scratch" in missed
    assert "corrmask.cu: corrmask_i64" not in missed


def test_the_steps_name_files_that_exist_and_end_in_time():
    asked = [word for step in report.STEPS.values() for word in step.command if word.endswith(".py")]
    assert set(report.tests_on_a_gpu()) <= set(asked)
    for word in asked:
        assert (report.ROOT / word).is_file(), word
    for step in report.STEPS.values():
        assert 1.5 * step.expected_s <= step.limit_s <= 240, step
    assert list(report.STEPS)[:2] == ["parity", "masking"]


def test_steps_are_given_what_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["report.py", "--kernels", "span", "--out", str(tmp_path)])
    arguments = report._arguments()
    for name, step in report.STEPS.items():
        words = report.command_of(step, arguments)
        assert (str(tmp_path / "gpu.csv") in words) == (report.BENCH in words), name
        assert ("span" in words) == (report.EXERCISE[1] in words), name


def test_the_exercise_goes_through_every_strategy_and_dtype(monkeypatch):
    """On the CPU in the device's place: the same batches, maskers and comparisons."""
    monkeypatch.setattr(exercise, "small_shared_memory", lambda _device: nullcontext())
    every = [exercise.maskers_of(case) for case in exercise.batches()]
    assert {given.stem for given in every[0]} == set(exercise.MASKING)
    tally = exercise.exercise(CPU)
    assert (tally.compared, tally.wrong) == (4 * sum(map(len, every)) + 4 + 4, [])
    tally = exercise.exercise(CPU, ["span"], small=True)
    cases = exercise.batches(small=True)
    assert {case.columns % 2 for case in cases} == {0, 1}  # kernels read and write even rows in another way
    n = sum(given.stem == "span" for case in cases for given in exercise.maskers_of(case, small=True))
    assert tally.compared == 4 * n


def test_one_wrong_kernel_does_not_hide_the_others(monkeypatch, capsys):
    monkeypatch.setattr(exercise, "small_shared_memory", lambda _device: nullcontext())
    right = exercise.first_rows

    def wrong(masked, rows):
        found = right(masked, rows)
        return found._replace(labels=found.labels + 1) if found.input_ids.dtype == torch.int32 else found

    monkeypatch.setattr(exercise, "first_rows", wrong)
    tally = exercise.exercise(CPU, ["span"], small=True)
    assert tally.compared == len(tally.wrong) == 8
    assert tally.wrong[0] == "small, odd, span, int32, in shared memory"
    assert "WRONG: small, odd, span, int32, in shared memory: AssertionError" in capsys.readouterr().out


def test_working_memory_is_written_before_a_kernel_reads_it(monkeypatch):
    monkeypatch.setattr(exercise, "small_shared_memory", lambda _device: nullcontext())
    right, found = exercise.first_rows, []

    def first_rows(masked, rows):
        found.append(torch.empty(2, dtype=torch.uint8).tolist() + torch.empty((1,), dtype=torch.int64).tolist())
        return right(masked, rows)

    monkeypatch.setattr(exercise, "first_rows", first_rows)
    assert not exercise.exercise(CPU, ["span"], small=True).wrong
    assert found == [[0xCD] * 3] * 16


def test_where_a_kernel_ends_the_use_of_the_device_the_others_run_in_a_new_process(monkeypatch):
    ran = []
    monkeypatch.setattr(exercise, "first_rows", lambda *_: 1 / 0)
    monkeypatch.setattr(devices, "works", lambda: False)
    monkeypatch.setattr(exercise.subprocess, "run", lambda command, **_: ran.append(command[2:]))
    with pytest.raises(exercise.LostDeviceError, match=r"^span$"):
        exercise.exercise(CPU, ["span", "pmi"], small=True)
    assert exercise.run_others("span", ["random", "span", "ranks"], small=True) == 1
    assert exercise.run_others("overlap", ["random", *exercise.GRAPH], small=False) == 1
    assert exercise.run_others("span", ["span"], small=False) == 1
    assert ran == [["--kernels", "random,ranks", "--small"], ["--kernels", "random"]]


def test_every_kernel_is_timed(workload):
    """Those of masking in the race of strategies, those of counts and of graphs in cases of their own."""
    timed = {exercise.Given("", entry.masker).stem: name for name, entry in strategies.entries(workload, 4).items()} | {
        "encode": counts.COUNTS,
        **dict.fromkeys(exercise.GRAPH, "graph"),
    }
    assert set(timed) == set(exercise.FILES), "a file of kernels is timed in no case of bench/gpu/run.py"
    assert {counts.COUNTS, "graph"} <= set(run.RUN)


def test_strategies_and_counts_mask_as_the_cpu_does(workload):
    tally = exercise.Tally()
    contestants = strategies.strategies_race(workload, 3, CPU, tally)
    assert (tally.compared, tally.wrong) == (len(strategies.entries(workload, 3)), [])
    assert len(contestants) == tally.compared + 2  # the copy, and tokens of int32
    for contestant in [*contestants, *counts.counts_race(workload, 3, CPU), *counts.values_race(workload, 3, CPU)]:
        contestant.run()


def test_tokens_of_torch_are_the_encoder_s(workload):
    found = counts.counts_of(workload, 3)
    want = found.encoder.padded(found.csr)["input_ids"]
    assert torch.equal(counts.torch_encoder(found, CPU)(found.csr), want)


def test_a_graph_of_other_genes_has_as_many_partners(workload):
    graph = workload.graph
    other = strategies.permuted(graph, 1)
    assert sorted(other.degrees) == sorted(graph.degrees)
    assert not np.array_equal(other.indices, graph.indices)


def test_rows_of_all_cases_have_the_same_columns(monkeypatch, tmp_path):
    """They are appended to one file, by processes that run different cases."""
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--results", str(tmp_path / "gpu.csv")])
    arguments = run.parser_of("", "gpu.csv", tuple(run.RUN), rounds=3).parse_args()
    columns = set()
    for which in (["graph"], ["counts"], ["counts", "graph"]):
        bench = run.GpuBench(arguments, CPU)
        for case in which:
            run.RUN[case](bench)
        columns |= {tuple(row) for row in bench.rows}
    assert len(columns) == 1
