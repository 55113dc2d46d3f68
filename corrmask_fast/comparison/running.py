"""``compare_strategies``: the runs of a comparison, each written as it ends, and the report of all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib.metadata import version
from multiprocessing import active_children, get_context, parent_process
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.cells.corpus_io import write_corpus
from corrmask_fast.comparison.comparison import Comparison
from corrmask_fast.comparison.inputs import ComparedCells, read_cells
from corrmask_fast.comparison.plan import RATE, Plan, Scoring, Task, notes_of, parse_compared, type_notes, united
from corrmask_fast.comparison.results import DETAILS, FACTS, ROWS
from corrmask_fast.errors import InputError, check_integer, import_extra, readable
from corrmask_fast.evaluation.cell_annotation import cell_labels
from corrmask_fast.files import atomic_file, check_output_folder
from corrmask_fast.masking.strategies import CONTROL, LEARNED_STRATEGIES, STRATEGIES
from corrmask_fast.progress import duration, shows_progress
from corrmask_fast.suggestions import did_you_mean
from corrmask_fast.tables import write_csv
from corrmask_fast.threads import get_num_threads
from corrmask_fast.training.settings import PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from corrmask_fast.cells.medians import Medians
    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.comparison.models import Row
    from corrmask_fast.training.settings import PretrainingSettings

    Ended = tuple[list[Row], list[Row]]

__all__ = ["compare_strategies"]

LOCK = ".lock"
RUN = "run.json"  # what may not change when a comparison goes on
DETAIL_COLUMNS = ("strategy", "fraction", "seed", "table", "group", "value", "n")
KEY_COLUMNS = ("kind", "strategy", "fraction", "seed")


def compare_strategies(
    train: str | PathLike[str] | Sequence[str | PathLike[str]],
    folder: str | PathLike[str],
    *,
    test: str | PathLike[str] | None = None,
    labels: str | None = None,
    strategies: Sequence[str] = (CONTROL, "random-matched", "corrmask"),
    reference: str = CONTROL,
    seeds: int = 5,
    fractions: Sequence[float] = (1.0,),
    mlm_probability: float = RATE,
    settings: PretrainingSettings | None = None,
    scoring: Scoring | None = None,
    graph: str | PathLike[str] | None = None,
    pmi: str | PathLike[str] | None = None,
    options: dict[str, Any] | None = None,
    vocabulary: Vocabulary | None = None,
    medians: Medians | None = None,
    test_share: float = 0.3,
    gene_share: float = 0.01,
    jobs: int | None = None,
    command: str = "",
    progress: bool = True,
) -> Comparison:
    """Pretrain models that differ in their masks alone, score all in the same way, and report the differences.

    All models of a seed start from the same weights and see the same cells in the same order, for the same number of
    steps. No model is trained on the test cells. A row is written when a model ends. If the call is interrupted, the
    same call goes on where it stopped. A call with more strategies, seeds or fractions adds to what is there.

    Parameters
    ----------
    train
        Counts, in one file or several: ``.h5ad`` and the other formats of :func:`~corrmask_fast.tokenize`. Or one
        corpus of tokenised cells.
    folder
        Folder for rows, graphs, models and the report.
    test
        The cells to score, in one file. None: ``test_share`` of the cells of ``train``.
    labels
        Obs column of the test cells with their types. Half of the labelled cells train a head, the other half is
        scored. None: only losses and the shortcut are measured.
    strategies
        Names of strategies, as :func:`~corrmask_fast.make_masker` takes them. A rate of its own follows ``@``:
        ``"random@0.4"``, ``"random@0.1..0.9"``.
    reference
        The strategy that the others are compared with; one of ``strategies``.
    seeds
        Number of models of each strategy and fraction, with the seeds 0, 1, … A seed decides the first weights, the
        order of the cells, the masks, the cells of a fraction, and the split of the labelled cells.
    fractions
        Shares of the training cells to pretrain on, in (0, 1].
    mlm_probability
        Share of a cell's genes that is masked, in (0, 1), for strategies without a rate of their own.
    settings
        Settings of pretraining (``corrmask_fast.training.settings``). ``max_steps`` must be set. None: the preset
        ``"tiny"``.
    scoring
        How models are scored (``corrmask_fast.comparison.plan.Scoring``). None: 1000 test cells, 1000 targets of the
        shortcut, 10 epochs of fine-tuning.
    graph
        File of a graph for all models. None: it is built from the cells that each model is pretrained on, and the
        shortcut is measured by the graph of all training cells.
    pmi
        File of a PMI table for all models. None: it is made from the cells that each model is pretrained on.
    options
        Options of the maskers, such as ``weights`` or ``gene_sets``. Each strategy takes those that it knows.
    vocabulary
        Genes of the counts. None: the genes of the inputs. If ``graph`` or ``pmi`` is given, its vocabulary is used.
    medians
        Medians that scale the counts. None: those of ``train``.
    test_share
        Share of the cells of ``train`` that is scored if there is no ``test``.
    gene_share
        Genes in a smaller share of the training cells are left out.
    jobs
        Number of models that are trained at the same time, with an equal share of the threads each. It changes the
        results by rounding errors only. None: one for each thread; on a GPU one.
    command
        Text for the report: the command that makes it again.
    progress
        Print how long it will take, and a line when a model ends.

    Returns
    -------
    Comparison
        The results, as they are in ``folder``.

    Raises
    ------
    InputError
        If the inputs do not fit each other, labels are missing, a strategy lacks what it needs, an option is out of
        range, another call works on ``folder``, or ``folder`` holds something else or a comparison of other cells or
        settings.
    MissingExtraError
        Without transformers (extra ``hf``), matplotlib (extra ``plot``) or scikit-learn (extra ``eval``).

    Notes
    -----
    With several jobs, processes are spawned: a script needs ``if __name__ == "__main__":`` around the call.

    Examples
    --------
    This trains four models, and so takes longer than the other examples:

    >>> from corrmask_fast import compare_strategies
    >>> from corrmask_fast.synthetic import generate_cells
    >>> generate_cells(1_000, 300, n_modules=10).write_h5ad("cells.h5ad")  # doctest: +SKIP
    >>> comparison = compare_strategies(
    ...     "cells.h5ad", "comparison", labels="cell_type", strategies=["random", "corrmask"], seeds=2
    ... )  # doctest: +SKIP
    >>> print(comparison.table())  # doctest: +SKIP
    """
    for module, extra in (("transformers", "hf"), ("matplotlib", "plot"), ("sklearn", "eval")):
        import_extra(module, extra)  # before the work
    import torch

    given = [train] if isinstance(train, str | PathLike) else list(train)
    plan = Plan(
        tuple(strategies), seeds, tuple(map(float, fractions)), reference, labels, mlm_probability,
        PRESETS["tiny"] if settings is None else settings, scoring or Scoring(), dict(options or {}),
        *(None if path is None else str(Path(path).absolute()) for path in (graph, pmi)),
    )  # fmt: skip
    on_gpu = plan.settings.device != "cpu" and torch.cuda.is_available()
    jobs = (1 if on_gpu else get_num_threads()) if jobs is None else check_integer("jobs", jobs, 1)
    _check_sources(plan)
    if plan.settings.device == "cuda" and not on_gpu:
        raise InputError("device='cuda': PyTorch finds no GPU here; use device='auto' or 'cpu'")
    out = check_output_folder(folder)
    found = _given_genes(plan)
    cells = read_cells(
        given,
        test,
        max_length=plan.settings.max_length,
        labels=labels,
        vocabulary=vocabulary if found is None else found,
        medians=medians,
        test_share=test_share,
        gene_share=gene_share,
        fixed_genes=found is not None,
        progress=progress,
    )
    plan.settings.check_size(cells.train.vocabulary.size)
    facts = _prepare(out, plan, cells, command)
    with _alone(out):
        _train_all(out, plan, facts, jobs, progress=progress)
        comparison = Comparison.read(out)
        comparison.save(out)
    return comparison


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Refuse a second call on a folder while one is at work: each would overwrite the other's rows."""
    with (out / LOCK).open("w") as file:
        with suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another call works on {out}; wait for it, or choose another folder") from error
        yield


def _train_all(out: Path, plan: Plan, facts: dict[str, Any], jobs: int, *, progress: bool) -> None:
    """Train and score the models that have no row yet; write each row as its model ends."""
    from corrmask_fast.comparison.models import TEMPORARY, Cells, check_maskers

    for path in out.glob(f"{TEMPORARY}*"):  # of runs that were killed
        shutil.rmtree(path, ignore_errors=True)
    rows, details = _ended(out)
    tasks = [task for task in plan.tasks() if _key(task) not in {_row_key(row) for row in rows}]
    if not tasks:
        return
    jobs = min(jobs, len(tasks))
    threads = max(1, get_num_threads() // jobs)
    shared = Cells(out, plan)
    shared.check_targets()
    check_maskers(plan, shared)
    training, scoring = _estimate(shared, plan, threads)
    trained = sum(task.strategy is not None for task in tasks)
    seconds = trained * training + len(tasks) * scoring
    if progress:
        print(  # noqa: T201
            f"{facts['train_cells']:,} cells to pretrain on, {facts['test_cells']:,} to score; {facts['genes']:,} genes"
            f"\n{trained} models of {plan.settings.max_steps} steps, about {training + scoring:.0f} s each, and "
            f"{len(tasks) - trained} untrained: about {duration(seconds / jobs)} with {jobs} at a time.\n"
            f"Rows so far: {len(rows)}, in {out / ROWS}; interrupted, the same command goes on",
            flush=True,
        )
    began = time.perf_counter()
    for done, (task, (more, parts)) in enumerate(_run(tasks, out, plan, jobs, threads), 1):
        rows, details = rows + more, details + parts
        _write(out, rows, details, facts["strategies"])
        if progress and shows_progress():
            left = (time.perf_counter() - began) / done * (len(tasks) - done)
            print(f"{done}/{len(tasks)}  {_line(task, more[0])}; {duration(left)} left", flush=True)  # noqa: T201


def _check_sources(plan: Plan) -> None:
    """Refuse a strategy that lacks a file, before cells are read."""
    for name in plan.strategies:
        found = (STRATEGIES | LEARNED_STRATEGIES).get(parse_compared(name).strategy)
        if found is None:
            continue
        missing = [option for option in found.requires if plan.options.get(option) is None]
        if found.needs == "gene_sets" and plan.options.get("gene_sets") is None:
            missing.append("gene_sets")
        if missing:
            raise InputError(f"the strategy {name} needs {missing[0]}; give its file, or leave the strategy out")


def _given_genes(plan: Plan) -> Vocabulary | None:
    """Return the vocabulary of the graph and the table that are given; None where neither is."""
    from corrmask_fast.graph.dependency_graph import DependencyGraph
    from corrmask_fast.masking.pmi_table import PMITable

    found: Vocabulary | None = None
    for path, cls, what in ((plan.graph, DependencyGraph, "the graph"), (plan.pmi, PMITable, "the PMI table")):
        if path is not None:
            own = cls.load(path).vocabulary  # type: ignore[attr-defined]
            if found is not None:
                own.check_same(found, what, "the graph")
            found = own
    return found


def _prepare(out: Path, plan: Plan, cells: ComparedCells, command: str) -> dict[str, Any]:
    """Write what the runs read into the folder, or check that it holds the same; return the facts of all runs so far.

    Everything that may be refused is refused before the folder is made.
    """
    import scipy.sparse

    from corrmask_fast.comparison.models import FEATURES, TEST, TRAIN, split_labelled

    lasting = json.loads(json.dumps({"cells": cells.fingerprint, **plan.lasting()}))
    models = [task for task in plan.tasks() if task.strategy is not None]
    begun = (out / RUN).is_file()
    there = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    if not begun and not there <= {TRAIN, TEST, FEATURES, FACTS}:  # these an interrupted call may leave
        raise InputError(f"{out} holds other files, and no comparison; choose a new folder")
    if begun:
        with readable(out / RUN, "record of a comparison"):
            saved = json.loads((out / RUN).read_bytes())
            then, before = saved["lasting"], [Task(str(name), float(x), int(k)) for name, x, k in saved["models"]]
            commands = str(saved.get("command", ""))
        _check_same(out, then, lasting)
        models = united(before, models)
        command = "\n".join(united(filter(None, commands.split("\n")), filter(None, [command])))
    names = united([str(task.strategy) for task in models], [])
    if plan.reference not in names:
        meant = did_you_mean(plan.reference, names)
        raise InputError(
            f"reference must be one of the strategies {', '.join(names)}; got {plan.reference}{meant}; add it to the "
            "strategies (models that have ended are not trained again), or choose another"
        )
    labelled = None
    if plan.labels is not None:
        labelled = split_labelled(cells.test, plan.labels, plan.scoring.min_cells, 0)
    command = command.encode("utf-8", "replace").decode()  # names of files may have any bytes
    facts = _facts(plan, models, cells, labelled) | {"command": command}
    out.mkdir(exist_ok=True)
    if not begun:
        write_corpus(cells.train, out / TRAIN)
        write_corpus(cells.test, out / TEST)
        with atomic_file(out / FEATURES) as temporary, temporary.open("wb") as file:
            scipy.sparse.save_npz(file, cells.features.tocsr())
    run = {"lasting": lasting, "models": models, "command": command}
    for name, content in ((FACTS, facts), (RUN, run)):
        with atomic_file(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if not (out / ROWS).is_file():
        _write(out, [], [], ())
    return facts


def _check_same(out: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise InputError if a folder holds a comparison of other cells or settings."""
    if then.get("cells") != now["cells"]:
        raise InputError(f"{out} holds a comparison on other cells or genes; choose a new folder")
    for name, old, new in _flat(then, now):
        if old != new:
            raise InputError(
                f"{out} holds a comparison with {name}={old}, and cannot go on with {new}; give {old}, or a new folder"
            )


def _flat(then: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, value in now.items():
        old = then.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            # A file that one call does not give is of a strategy that it does not train.
            both = {**old, **value} if name != "options" else old.keys() & value.keys()
            yield from ((one, old.get(one), value.get(one)) for one in both)
        else:
            yield name, old, value


def _facts(plan: Plan, models: list[Task], cells: ComparedCells, labelled: Any) -> dict[str, Any]:
    """Return what the report says of a comparison beside its rows."""
    types: dict[str, int] = {}
    notes = []
    if labelled is not None:
        counts = np.bincount(labelled.of_cell[labelled.of_cell >= 0]).tolist()
        types = dict(zip(labelled.types, counts, strict=True))
        text, known = cell_labels(cells.test, str(plan.labels))
        rare = sorted(set(text[known].tolist()) - set(types))
        if rare:
            notes.append(f"Types with fewer than {plan.scoring.min_cells} test cells are left out: {', '.join(rare)}.")
        notes += type_notes(plan, has_counts=cells.has_counts)
    notes += notes_of(plan, [str(task.strategy) for task in models])
    return {
        "strategies": {task.strategy: parse_compared(str(task.strategy)).label for task in models},
        "reference": plan.reference,
        "fractions": sorted({task.fraction for task in models}),
        "seeds": 1 + max(task.seed for task in models),
        "models": len(models),
        "train_cells": cells.train.n_cells,
        "test_cells": cells.test.n_cells,
        "labelled_cells": sum(types.values()),
        "genes": cells.train.vocabulary.size - len(cells.train.vocabulary.special_token_ids),
        "types": types,
        "rare": [] if labelled is None else labelled.types[-labelled.n_rare :],
        "settings": plan.lasting()["settings"],
        "evaluation": {"mask rate": plan.mlm_probability, **plan.lasting()["scoring"]},
        "inputs": {"train": cells.train_name, "test": cells.test_name},
        "notes": notes,
        "versions": {name: version(name) for name in ("corrmask-fast", "torch", "transformers", "scikit-learn")},
    }


def _estimate(shared: Any, plan: Plan, threads: int) -> tuple[float, float]:
    from corrmask_fast.comparison.estimate import seconds_a_model

    labelled = shared.labelled(0)
    n_labelled = 0 if labelled is None else labelled.train.size + labelled.test.size
    return seconds_a_model(shared.train, shared.test.n_cells, n_labelled, plan, threads)


def _run(tasks: list[Task], out: Path, plan: Plan, jobs: int, threads: int) -> Iterator[tuple[Task, Ended]]:
    """Yield each task with its rows and details as it ends."""
    from corrmask_fast.comparison.models import run_task

    if jobs == 1:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for task in tasks:
                yield task, run_task(task, str(out), plan, None)
        finally:
            torch.set_num_threads(before)
        return
    failed: BaseException | None = None
    others = set(active_children())
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_follow_parent) as pool:
        running = {pool.submit(run_task, task, str(out), plan, threads): task for task in tasks}
        try:
            for future in as_completed(running):
                if future.cancelled():
                    continue
                if (error := future.exception()) is None:
                    yield running[future], future.result()
                elif failed is None:  # those that run now end first, and are kept
                    failed = error
                    for waiting in running:
                        waiting.cancel()
        except BaseException:  # an interrupt: models that run now would keep the call waiting
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(active_children()) - others:
                process.terminate()
            raise
    if isinstance(failed, BrokenProcessPool):
        raise InputError(
            "a process ended abruptly, most likely for lack of memory; the models that ended are kept: give the same "
            "command with fewer jobs"
        ) from failed
    if failed is not None:
        raise failed


def _follow_parent() -> None:
    """Leave an interrupt to the process that began this one, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def end() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _ended(out: Path) -> Ended:
    """Return the rows of the models that ended, and their details."""
    found, keys = [], set()
    for name in (ROWS, DETAILS):
        with readable(out / name, "table of a comparison"), (out / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
            if name == ROWS:
                keys = {_row_key(row)[1:] for row in rows}
            found.append([row for row in rows if _row_key({"kind": "", **row})[1:] in keys])
    return found[0], found[1]


def _write(out: Path, rows: list[Row], details: list[Row], strategies: Iterable[str]) -> None:
    """Write both tables, in an order that does not depend on which model ended first."""
    places = {name: place for place, name in enumerate(strategies)}

    def place(row: Row) -> tuple[Any, ...]:
        share = float(row["fraction"] or 0)
        return int(row["seed"]), share, row.get("kind") == "baseline", places.get(row["strategy"], -1)

    # Details first: a row says that its model is done.
    details, rows = sorted(details, key=place), sorted(rows, key=place)
    write_csv(out / DETAILS, DETAIL_COLUMNS, [[one.get(name, "") for name in DETAIL_COLUMNS] for one in details])
    columns = list(dict.fromkeys([*KEY_COLUMNS, *(name for row in rows for name in row)]))
    write_csv(out / ROWS, columns, [[row.get(name, "") for name in columns] for row in rows])


def _key(task: Task) -> tuple[str, str, str, int]:
    if task.strategy is None:
        return "untrained", "untrained", "", task.seed
    return "model", task.strategy, _share(task.fraction), task.seed


def _row_key(row: Row) -> tuple[str, str, str, int]:
    return row["kind"], row["strategy"], _share(row["fraction"]), int(row["seed"])


def _share(fraction: Any) -> str:
    return "" if fraction == "" else f"{float(fraction):g}"


def _line(task: Task, row: Row) -> str:
    what = "untrained encoder, baselines" if task.strategy is None else task.strategy
    share = "" if task.strategy is None else f", {100 * task.fraction:g} % of the cells"
    figures = [f"loss {row['loss']:.3f}"]
    if "macro_f1" in row or "probe_f1" in row:
        figures.append(f"macro-F1 {row.get('macro_f1', row.get('probe_f1')):.3f}")
    return f"{what}{share}, seed {task.seed}: {', '.join(figures)} ({row['seconds']:.0f} s)"
