"""Where commands write: what cannot be written is refused before anything is read, in one line, and nothing is left."""

from __future__ import annotations

import json

import pytest

# Each command with OUT where it writes. The inputs are not there: nobody has looked at them when outputs are refused.
FILES = [
    "tokenize in.h5ad OUT.npz --tokens tokens.json",
    "graph build in.npz -o OUT.safetensors",
    "graph plot in.safetensors OUT.png",
    "graph merge in.safetensors in2.safetensors -o OUT.safetensors",
    "graph compare in.safetensors in2.safetensors --csv OUT.csv",
    "graph compare in.safetensors in2.safetensors --genes-csv OUT.csv",
    "graph compare in.safetensors in2.safetensors --plot OUT.svg",
    "graph stability in.npz in.safetensors -o OUT.safetensors",
    "graph stability in.npz in.safetensors --csv OUT.csv",
    "graph stability in.npz in.safetensors --plot OUT.pdf",
    "graph export in.safetensors OUT.csv",
    "graph export in.safetensors OUT.graphml",
    "graph export in.safetensors OUT.h5ad",
    "audit in.npz --graph in.safetensors --csv OUT.csv",
    "audit in.npz --graph in.safetensors --coverage-csv OUT.csv",
    "audit in.npz --graph in.safetensors --all --windows-csv OUT.csv",
    "audit in.npz --graph in.safetensors --plot OUT.png",
    "pmi build in.npz -o OUT.safetensors",
    "embed model in.npz -o OUT.h5ad",
    "evaluate masks model model2 in.npz --csv OUT.csv",
    "evaluate shortcut model model2 in.npz --graph in.safetensors --csv OUT.csv",
    "evaluate shortcut model model2 in.npz --graph in.safetensors --plot OUT.png",
    "evaluate cells model in.npz --csv OUT.csv",
    "evaluate cells model in.npz --confusion-csv OUT.csv",
    "evaluate cells model in.npz --plot OUT.png",
    "evaluate genes model in.npz --genes genes.csv --csv OUT.csv",
    "evaluate genes model in.npz --genes genes.csv --plot OUT.png",
]
FOLDERS = [
    "tokenize in.h5ad OUT --tokens tokens.json",
    "graph build in.npz -o OUT --by tissue",
    "pretrain in.npz --graph in.safetensors --out OUT",
    "demo --input in.h5ad --out OUT",
]


@pytest.fixture
def refused(tmp_path, monkeypatch, fails):
    """Run a command that writes to OUT, which must be refused: one line, exit code 2, and the folder as it was."""
    for module in ("matplotlib", "transformers"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens.json").write_text(json.dumps({"<pad>": 0, "<mask>": 1, "A": 2}))

    def run(command, out):
        before = sorted(tmp_path.rglob("*"))
        err = fails(*command.replace("OUT", out).split())
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


@pytest.mark.parametrize("command", FILES + FOLDERS)
def test_folders_around_it_that_are_not_there_or_closed(refused, tmp_path, command, obeys_permissions):
    assert "the folder nowhere does not exist; create it first" in refused(command, "nowhere/a")
    (tmp_path / "file").touch()
    assert "file is a file and no folder; choose another place" in refused(command, "file/a")
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "the folder closed may not be written to; change its permissions" in refused(command, "closed/a")


@pytest.mark.parametrize("command", FILES)
def test_a_folder_where_a_file_is_wanted(refused, tmp_path, command):
    name = next(word for word in command.split() if word.startswith("OUT"))
    (tmp_path / name.replace("OUT", "a")).mkdir()
    assert "it is a folder; give the name of a file" in refused(command, "a")


@pytest.mark.parametrize("command", FOLDERS)
def test_a_file_where_a_folder_is_wanted(refused, tmp_path, command):
    (tmp_path / "a").write_text("mine")
    message = refused(command, "a")
    assert "a: it is a file; give the name of a folder" in message or "a exists already; remove it" in message
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("command", FOLDERS[:2])
def test_a_folder_that_holds_something_is_not_written_over(refused, tmp_path, command):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert "a exists already" in refused(command, "a")


def test_a_checkpoint_is_a_folder(refused, tmp_path, make_corpus):
    from corrmask_fast import write_corpus

    write_corpus(make_corpus(20, 10), tmp_path / "in.npz")
    (tmp_path / "a").write_text("mine")
    build = "graph build in.npz -o g.safetensors --min-cooccurrence 1 --min-presence 1 --no-progress --checkpoint OUT"
    assert "cannot write to a: it is a file; give the name of a folder" in refused(build, "a")
    assert "the folder nowhere does not exist; create it first" in refused(build, "nowhere/a")


def test_an_input_is_not_replaced(refused, tmp_path):
    (tmp_path / "genes.csv").write_text("gene,label\nA,x\n")
    evaluate = "evaluate genes model in.npz --genes genes.csv --csv OUT"
    assert "--csv would replace ./genes.csv, which is read here; give another name" in refused(evaluate, "./genes.csv")
    compare = "graph compare a.safetensors b.safetensors --csv OUT"
    assert "--csv would replace b.safetensors, which is read here" in refused(compare, "b.safetensors")


@pytest.mark.parametrize(
    "command",
    [
        "graph merge a.safetensors b.safetensors -o OUT.safetensors",
        "graph build ./a.safetensors -o OUT.safetensors",
        "pmi build ./a.safetensors -o OUT.safetensors",
    ],
)
def test_no_input_is_replaced_by_what_is_made_of_it(refused, tmp_path, command):
    (tmp_path / "a.safetensors").write_text("mine")
    message = refused(command, "a")
    assert "--output would replace a.safetensors, which is read here; give another name" in message
    assert (tmp_path / "a.safetensors").read_text() == "mine"
    (tmp_path / "link.safetensors").symlink_to("a.safetensors")
    assert "--output would replace link.safetensors, which is read here" in refused(command, "link")


@pytest.mark.parametrize("command", FILES)
def test_a_link_is_judged_by_its_own_name(refused, tmp_path, command):
    """A blob of another name may stand behind it; what is refused then is the input, which is not there."""
    name = next(word for word in command.split() if word.startswith("OUT")).replace("OUT", "a")
    (tmp_path / "store").mkdir()
    (tmp_path / name).symlink_to("store/blob123")
    message = refused(command, "a")
    assert "must end in" not in message
    assert "cannot write" not in message
    assert "exported to" not in message
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(name)
    assert f"cannot write {name}: it is a link that leads back to itself; remove it" in refused(command, "a")


def test_two_outputs_of_one_name(refused):
    both = "audit in.npz --graph in.safetensors --csv OUT --coverage-csv ./OUT"
    assert "--csv and --coverage-csv are both ./a.csv; give each a file of its own" in refused(both, "a.csv")
