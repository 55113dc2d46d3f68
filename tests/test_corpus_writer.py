"""Corpora are written whole or not at all; files that shrink, full disks and missing extras are named."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from corpus_cases import V1, cells_of, dataset_of, make_corpus

from corrmask_fast import InputError, MissingExtraError, Vocabulary, build_dependency_graph, read_corpus, write_corpus
from corrmask_fast.cells.corpus_io import CorpusWriter


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, name, failure):
    with pytest.raises(failure), CorpusWriter(tmp_path / name, V1) as writer:  # noqa: PT012
        writer.write(np.array([0, 2]), np.array([4, 5]))
        raise failure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
def test_a_corpus_that_turns_out_bad_leaves_nothing(tmp_path, name):
    corpus = read_corpus(dataset_of([[4]] * 20 + [[5, 999]]), V1)
    with pytest.raises(InputError, match="cell 20 holds token 999"):
        write_corpus(corpus, tmp_path / name, chunk_cells=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["cells.dataset", "cells.npz"])
def test_columns_that_do_not_fit_leave_nothing(tmp_path, name):
    with (
        pytest.raises(InputError, match="obs column 'depth' has 3 values for 2 cells"),
        CorpusWriter(tmp_path / name, V1) as writer,
    ):
        writer.write(np.array([0, 1, 2]), np.array([4, 5]), {"depth": np.arange(3)})
    with (
        pytest.raises(InputError, match="obs column 'x' must hold one number, text or time a cell; it holds lists"),
        CorpusWriter(tmp_path / name, V1) as writer,
    ):
        writer.write_cells([{"input_ids": [4], "x": [1]}, {"input_ids": [5], "x": [1, 2]}])
    with (  # noqa: PT012
        pytest.raises(InputError, match="obs columns must be the same in every chunk"),
        CorpusWriter(tmp_path / name, V1) as writer,
    ):
        writer.write(np.array([0, 1]), np.array([4]), {"depth": np.arange(1)})
        writer.write(np.array([0, 1]), np.array([4]), {})
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_under_its_name(tmp_path):
    script = """if True:
        import sys, time, numpy as np
        from corrmask_fast import Vocabulary
        from corrmask_fast.cells.corpus_io import CorpusWriter
        with CorpusWriter(sys.argv[1], Vocabulary(("<pad>", "<mask>", *map(str, range(300))))) as writer:
            while True:
                writer.write(np.array([0, 200]), np.arange(2, 202))
                print("writing", flush=True)
                time.sleep(0.01)
    """
    for sign, left in ((signal.SIGKILL, None), (signal.SIGINT, [])):
        path = tmp_path / sign.name / "cells.dataset"
        path.parent.mkdir()
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as writer:
            for _ in range(3):
                assert writer.stdout.readline() == b"writing\n"
            writer.send_signal(sign)
            writer.stdout.close()
        assert not path.exists()
        assert left is None or list(path.parent.iterdir()) == left


def test_an_existing_folder_is_not_replaced(tmp_path):
    write_corpus(make_corpus([[4]]), tmp_path / "cells.dataset")
    with pytest.raises(InputError, match="exists already; remove it, or choose another name"):
        write_corpus(make_corpus([[5]]), tmp_path / "cells.dataset")
    assert cells_of(read_corpus(tmp_path / "cells.dataset")) == [[4]]
    with pytest.raises(InputError, match=r"the folder .* does not exist; create it first"):
        write_corpus(make_corpus([[5]]), tmp_path / "nowhere" / "cells.npz")


def test_a_missing_extra_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    dataset_of([[4]]).save_to_disk(str(tmp_path / "cells"))
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"this needs 'datasets'.*pip install 'corrmask-fast\[hf\]'"):
        read_corpus(tmp_path / "cells", V1)
    with pytest.raises(MissingExtraError, match=r"corrmask-fast\[hf\]") as error:
        write_corpus(make_corpus([[4]]), tmp_path / "new.dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["cells"], error  # while the error is still held
    write_corpus(make_corpus([[4]]), tmp_path / "new.npz")  # needs nothing
    assert cells_of(read_corpus(tmp_path / "new.npz")) == [[4]]


def test_the_stored_state_is_json_without_paths(tmp_path):
    write_corpus(make_corpus([[4]]), tmp_path / "cells.dataset")
    for name in ("state.json", "vocabulary.json", "dataset_info.json"):
        text = (tmp_path / "cells.dataset" / name).read_text()
        json.loads(text)
        assert str(tmp_path) not in text


def test_a_file_that_is_cut_off_is_named_before_and_while_it_is_read(tmp_path):
    corpus = corpus_of_folder(tmp_path / "cells")
    data = next((tmp_path / "cells").glob("*.arrow"))
    whole = data.read_bytes()
    os.truncate(data, len(whole) - 1000)
    with pytest.raises(InputError, match=r"data-.*arrow had \d+ bytes when it was opened and has \d+ now"):
        build_dependency_graph(corpus, min_cooccurrence=1, min_presence=1, progress=False)
    with pytest.raises(InputError, match=r"data-.*arrow is cut off or damaged: Expected .*; copy it again, or make it"):
        read_corpus(tmp_path / "cells")
    data.unlink()
    with pytest.raises(InputError, match=r"has 0 now: it was cut off or removed while it was being read"):
        build_dependency_graph(corpus, min_cooccurrence=1, min_presence=1, progress=False)


def corpus_of_folder(path):
    rng = np.random.default_rng(0)
    cells = [rng.choice(20, 10, replace=False) + 2 for _ in range(500)]
    vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(20))))
    write_corpus(read_corpus(cells, vocabulary), path)
    return read_corpus(path)


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    """Files of limited size, in a process of its own, break off in the middle as on a full disk."""
    text = """
        import resource, sys, warnings
        import numpy as np
        from corrmask_fast import Corpus, Vocabulary, build_dependency_graph, write_corpus
        folder = sys.argv[1]
        vocabulary = Vocabulary(("<pad>", "<mask>", *(f"G{i}" for i in range(200))))
        rng = np.random.default_rng(0)
        tokens = np.concatenate([rng.permutation(200) + 2 for _ in range(300)])
        corpus = Corpus(np.arange(0, tokens.size + 1, 200), tokens, vocabulary)
        parameters = {"min_cooccurrence": 1, "rho_min": 0, "progress": False}
        graph = build_dependency_graph(corpus, **parameters)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        for name in ("cells.npz", "cells", "graph.safetensors"):
            try:
                save = graph.save if name == "graph.safetensors" else lambda path: write_corpus(corpus, path)
                save(f"{folder}/{name}")
            except OSError as error:
                print(error)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = build_dependency_graph(corpus, checkpoint=f"{folder}/state", **parameters)
        print(caught[0].message)
        assert (again.rho == graph.rho).all()
    """
    command = [sys.executable, "-c", textwrap.dedent(text), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=80)
    assert run.returncode == 0, run.stderr
    *errors, warning = run.stdout.splitlines()
    for line, name in zip(errors, ("cells.npz", "cells", "graph.safetensors"), strict=True):
        assert re.search(rf"File too large; nothing is left half-written; .*: '{tmp_path}/{name}'$", line), line
    assert re.match(
        r"the checkpoint was not saved, and the build goes on without: .*pairs-0.safetensors: File", warning
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["build.json", "counts-0.safetensors"]
