"""The thread pool: results in order, few at a time, none lost."""

from __future__ import annotations

import threading

import pytest
import threadpoolctl

from corrmask_fast import InputError, get_num_threads, set_num_threads
from corrmask_fast.threads import map_tasks, one_blas_thread, run_ranges


@pytest.fixture(autouse=True)
def _restore_threads():
    yield
    set_num_threads(None)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_map_tasks_in_order_and_never_far_ahead(threads):
    set_num_threads(threads)
    taken, used = [], 0

    def tasks():
        for task in range(200):
            assert threading.current_thread() is threading.main_thread()
            taken.append(task)
            yield task

    for result in map_tasks(lambda task: task**2, tasks()):
        assert result == used**2
        used += 1
        assert len(taken) - used <= 2 * threads + 1
    assert used == 200


@pytest.mark.parametrize("threads", [1, 2])
def test_map_tasks_stops_at_an_error(threads):
    set_num_threads(threads)
    taken, done = [], []

    def tasks():
        for task in range(1000):
            taken.append(task)
            yield task

    def work(task):
        if task == 7:
            raise ValueError("seven")
        return task

    with pytest.raises(ValueError, match="seven"):
        done.extend(map_tasks(work, tasks()))
    assert len(taken) < 20
    assert list(map_tasks(work, range(7))) == list(range(7))  # the pool still works


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [0, 1, 7, 8, 100])
def test_run_ranges_covers_every_row_once(threads, n):
    set_num_threads(threads)
    ranges = run_ranges(lambda begin, end: (begin, end), n, 4)
    assert [row for begin, end in sorted(ranges) for row in range(begin, end)] == list(range(n))
    lengths = [end - begin for begin, end in ranges]
    assert min(lengths) >= 4 or len(ranges) == 1
    assert threads == 1 or n < 8 or len(ranges) > 1


@pytest.mark.parametrize("threads", [2, 3, 8])
@pytest.mark.parametrize("n", [47, 126, 1001, 5000])
def test_no_thread_waits_long_for_the_last_range(threads, n):
    set_num_threads(threads)
    lengths = [end - begin for begin, end in run_ranges(lambda begin, end: (begin, end), n, 16)]
    assert max(lengths) <= max(n // (2 * threads), 31)
    assert lengths[-1] < 32


@pytest.mark.parametrize("threads", [2, 5])
def test_run_ranges_stops_at_an_error(threads):
    set_num_threads(threads)
    begun = []

    def work(begin, end):
        begun.append(begin)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_ranges(work, 1000, 1)
    assert len(begun) <= threads
    assert run_ranges(lambda begin, end: end - begin, 9, 9) == [9]  # the pool still works


def test_number_of_threads(monkeypatch):
    monkeypatch.setenv("CORRMASK_NUM_THREADS", "3")
    assert get_num_threads() == 3
    set_num_threads(4)
    assert get_num_threads() == 4
    set_num_threads(None)
    for wrong in ("0", "many", "-1", "1.5"):
        monkeypatch.setenv("CORRMASK_NUM_THREADS", wrong)
        with pytest.raises(InputError, match=rf"CORRMASK_NUM_THREADS must be an integer >= 1; got '?{wrong}"):
            get_num_threads()
    with pytest.raises(InputError, match=r"threads must be an integer >= 1; got 0"):
        set_num_threads(0)


def test_blas_gets_its_threads_back_when_the_last_user_is_done():
    def blas_threads():
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert blas_threads() == {1}
        first.__exit__(None, None, None)
        assert blas_threads() == {1}
        with pytest.raises(ValueError, match="within"), one_blas_thread():
            raise ValueError("within")
        second.__exit__(None, None, None)
        assert blas_threads() == before
