"""Checks of numbers, messages of missing packages, and files that appear whole or not at all."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import corrmask_fast
from corrmask_fast import InputError, MissingExtraError
from corrmask_fast.errors import check_integer, check_number, check_seed, import_extra, readable
from corrmask_fast.files import atomic_file, atomic_folder, check_output, check_output_folder


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.25), np.int64(1)])
def test_numbers_in_range(value):
    assert check_number("share", value, 0, 1) == float(value)


@pytest.mark.parametrize("value", [-1e-300, 1.0000001, math.nan, math.inf, "a", "0.5", True, np.True_, None, [0.5], 1j])
def test_numbers_out_of_range_name_value_and_rule(value):
    with pytest.raises(InputError) as error:
        check_number("share", value, 0, 1)
    assert str(error.value) == f"share must be a number in [0, 1]; got {value!r}"


def test_open_ends_are_out_of_range():
    assert check_number("p", 1e-300, 0, 1, open_ends=True) == 1e-300
    for value in (0, 1):
        with pytest.raises(InputError, match=rf"p must be a number in \(0, 1\); got {value}"):
            check_number("p", value, 0, 1, open_ends=True)


def test_a_file_larger_than_memory_is_not_called_unreadable():
    message = (
        r"^x.npz takes more memory than there is, or is a damaged .npz file: MemoryError: Unable to allocate 8 TiB"
    )
    with pytest.raises(InputError, match=message), readable("x.npz", ".npz file"):
        raise MemoryError("Unable to allocate 8 TiB")


@pytest.mark.parametrize("value", [3, np.int16(3), np.uint64(3)])
def test_integers_in_range(value):
    assert check_integer("count", value, 3, 3) == 3
    assert type(check_integer("count", value, 0)) is int


@pytest.mark.parametrize(
    "value", [2, 4, 3.0, "3", None, True, np.float64(3), [3], np.array([3, 3]), np.bool_(True)], ids=str
)
def test_integers_out_of_range_name_value_and_rule(value):
    with pytest.raises(InputError) as error:
        check_integer("count", value, 3, 3)
    assert str(error.value) == f"count must be an integer in [3, 3]; got {value!r}"


def test_seeds_are_all_64_bits():
    assert [check_seed(seed) for seed in (0, 2**64 - 1, np.uint64(2**63))] == [0, 2**64 - 1, 2**63]
    for seed in (-1, 2**64, 0.0, None):
        with pytest.raises(InputError, match="seed must be an integer in"):
            check_seed(seed)


def test_a_missing_package_names_the_extra():
    with pytest.raises(MissingExtraError) as error:
        import_extra("no_such_package.part", "hf")
    assert "'no_such_package'" in str(error.value)
    assert "pip install 'corrmask-fast[hf]'" in str(error.value)
    assert isinstance(error.value, ImportError)
    assert import_extra("math", "hf") is math


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'CorrMaskar'"):
        _ = corrmask_fast.CorrMaskar
    assert not hasattr(corrmask_fast, "torch")


# ------------------------------------------------------------------------------------------------------------ files


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "out.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # as any other file of this user


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, failure):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(failure), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "part").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(path) as temporary:
        (temporary / "part").write_text("whole")
        assert not path.exists()
    assert (path / "part").read_text() == "whole"
    with pytest.raises(InputError, match="exists already; remove it"), atomic_folder(path):
        pass
    assert (path / "part").read_text() == "whole"


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for check, name, message in (
        (check_output, "folder", "cannot write .*folder: it is a folder; give the name of a file"),
        (check_output_folder, "file", "cannot write to .*file: it is a file; give the name of a folder"),
        (check_output, "nowhere/out", "cannot write .*: the folder .*nowhere does not exist; create it first"),
        (check_output_folder, "nowhere/out", "cannot write .*: the folder .*nowhere does not exist; create it first"),
        (check_output, "file/out", "cannot write .*: .*file is a file and no folder; choose another place"),
        (check_output, "/dev/null", "cannot write /dev/null: it is no ordinary file; give the name of one"),
    ):
        with pytest.raises(InputError, match=message):
            check(tmp_path / name)
    for name in ("folder", "file"):
        with pytest.raises(InputError, match="exists already; remove it, or choose another name"):
            check_output_folder(tmp_path / name, new=True)
    assert check_output_folder(tmp_path / "folder") == tmp_path / "folder"
    assert check_output(tmp_path / "file") == tmp_path / "file"


def test_folders_that_may_not_be_written_to(tmp_path, obeys_permissions):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for check, path in ((check_output, closed / "out"), (check_output_folder, closed / "new")):
        with pytest.raises(InputError, match=r"cannot write .*: the folder .*closed may not be written to; change its"):
            check(path)
    with pytest.raises(InputError, match="may not be written to"):
        check_output_folder(closed)


def test_a_link_stays_one_and_what_it_names_is_replaced(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("old.txt")
    with atomic_file(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "old.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_is_judged_by_its_own_name_and_written_where_it_leads(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "graph.safetensors").symlink_to("store/blob123")
    assert check_output(tmp_path / "graph.safetensors") == tmp_path / "graph.safetensors"
    with atomic_file(tmp_path / "graph.safetensors") as temporary:
        assert temporary.parent == (tmp_path / "store").resolve()
        temporary.write_text("new")
    assert (tmp_path / "store" / "blob123").read_text() == "new"
    (tmp_path / "astray").symlink_to("nowhere/blob")
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist; create it first"):
        check_output(tmp_path / "astray")


def test_a_link_that_leads_back_to_itself(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(InputError, match=r"cannot write .*one: it is a link that leads back to itself; remove it"):
        check_output(tmp_path / "one")


def test_a_killed_writer_leaves_nothing_under_its_name(tmp_path):
    script = (
        "import sys, time; from corrmask_fast.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as path:\n"
        "    path.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    path = tmp_path / "out.txt"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert all(left.name.startswith(".out.txt.") for left in tmp_path.iterdir())  # hidden, and never mistaken for it


def test_a_writer_that_is_interrupted_leaves_nothing_at_all(tmp_path):
    script = (
        "import signal, sys, time; from corrmask_fast.files import atomic_folder\n"
        # A shell starts what runs in the background with interrupts ignored, and a child inherits that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with atomic_folder(sys.argv[1]) as path:\n"
        "    (path / 'part').write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    path = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as writer:
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(0.05)
        writer.send_signal(signal.SIGINT)
    assert writer.returncode != 0
    assert list(tmp_path.iterdir()) == []
