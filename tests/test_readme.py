"""The README does what it says: commands and each Python block run as they stand, figures are recorded ones."""

from __future__ import annotations

import importlib
import pickle
import re
import shlex
from pathlib import Path

import pytest

from corrmask_fast.cells.tokenizer import corpus_medians
from corrmask_fast.cli.main import main
from corrmask_fast.synthetic import generate_cells

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with what a reader would bring: counts, a token dictionary, a model, arguments."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    cells = generate_cells(600, 150, n_modules=5, n_types=2)
    cells.write_h5ad("cells.h5ad")
    Path("more").mkdir()
    cells.write_h5ad("more/cells2.h5ad")
    medians = corpus_medians("cells.h5ad", cells.vocabulary, progress=False)
    Path("gene_median_dictionary.pkl").write_bytes(pickle.dumps(medians))
    Path("ReactomePathways.gmt").write_text("planted\tlink\tGENE0020\tRPL3\tGENE0021\n")
    tokens = {name: token for token, name in enumerate(cells.vocabulary.names)}
    Path("token_dictionary.pkl").write_bytes(pickle.dumps(tokens))
    Path("gene_name_id_dict.pkl").write_bytes(pickle.dumps({"RPL3": "GENE0020"}))  # a gene of a planted module
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=len(tokens), **shape))
    settings = {"max_steps": 2, "use_cpu": True, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    return {"model": model, "args": transformers.TrainingArguments(output_dir="trained", **settings)}


def test_commands_and_python_run(reader, capsys):
    datasets = pytest.importorskip("datasets")
    commands = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    assert len(commands) == 15
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "corrmask-fast"
        assert main(arguments) == 0, command
    printed = capsys.readouterr().out
    assert re.search(r"RPL3 .*: [1-9]\d* partners", printed), printed
    for picture in ("audit.png", "types.png", "shortcut.png", "graph.png", "run/loss.png"):
        assert Path(picture).stat().st_size
    assert Path("whole.safetensors").read_bytes()  # from all cells, in chunks

    reader["dataset"] = datasets.load_from_disk("cells.dataset")
    programs, result = blocks("python"), {}
    assert len(programs) == 7
    for program in programs:
        names = dict(reader)  # each block alone, with what a reader brings
        exec(compile(program, "README.md", "exec"), names)
        result |= names
    assert result["trainer"].train().global_step == 2
    assert (result["masked"].labels != -100).any()
    assert result["partners"].size
    assert "hit rate" in capsys.readouterr().out


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "bench" / "README.md", ROOT / "CHANGELOG.md"):
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_figures_are_those_of_the_last_recorded_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    bench = importlib.import_module("run")
    stated = README.split(bench.BEGIN)[1].split(bench.END)[0]
    if bench.RESULTS.exists():
        assert stated == bench.figures(bench.last_run()), "run: python bench/run.py --readme"
    else:
        assert not re.search(r"\d", stated), "figures without a recorded run"
