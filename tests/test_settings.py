"""A configuration file's values: each in its range and of its type, or refused when the file is read."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from corrmask_fast import InputError
from corrmask_fast.cli.main import _run, build_parser, main
from corrmask_fast.training.run_record import RunRecord
from corrmask_fast.training.settings import PretrainingSettings

INTEGERS = ("hidden_size", "layers", "heads", "intermediate_size", "max_length", "batch_size", "gradient_accumulation",
            "warmup_steps", "max_steps", "run_seed", "workers", "eval_every", "save_every", "log_every")  # fmt: skip
NUMBERS = ("dropout", "learning_rate", "weight_decay", "epochs", "held_out")
NO_NUMBERS = ['"1"', '"0.1"', "true", "inf", "-inf", "nan", "-1", "[1]", "[]", "{ a = 1 }", "2026-01-01", "12:00:00",
              "1" + "0" * 40, "1e300", "9" * 5000, '"' + "x" * 100_000 + '"']  # fmt: skip


def read(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    return PretrainingSettings.read(tmp_path / "run.toml")


@pytest.mark.parametrize("name", INTEGERS + NUMBERS)
def test_values_that_are_no_number_of_the_range(tmp_path, name):
    for value in NO_NUMBERS:
        # Python itself refuses to read 5000 digits, before there is a setting.
        with pytest.raises(InputError, match="4300 digits" if value == "9" * 5000 else rf"{name} must be ") as error:
            read(tmp_path, f"{name} = {value}\n")
        assert len(str(error.value)) < 700
    if name in INTEGERS:
        with pytest.raises(InputError, match=f"{name} must be an integer"):
            read(tmp_path, f"{name} = 1.0\n")


@pytest.mark.parametrize("name", ["lr_schedule", "precision", "device", "masking", "head", "group_by_length"])
def test_values_that_are_no_choice(tmp_path, name):
    for value in ('"other"', "1", "[1]", "{ a = 1 }", "2026-01-01", "nan"):
        with pytest.raises(InputError, match=f"{name} must be "):
            read(tmp_path, f"{name} = {value}\n")


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000, "a." * 3000 + "b = 1", "[" * 3000, "\0", "layers = 1\nlayers = 2", "x = 9" * 3],
    ids=range(6),
)
def test_files_that_are_none(tmp_path, text):
    with pytest.raises(InputError):
        read(tmp_path, text)


def test_the_largest_model(tmp_path):
    assert read(tmp_path, "hidden_size = 8192\nintermediate_size = 8192\nlayers = 20\n").layers == 20
    for text in ("layers = 1000000000000", "hidden_size = 65537", "batch_size = 1000001", "epochs = 100000"):
        with pytest.raises(InputError, match=r"must be (an integer|a number) in"):
            read(tmp_path, text)
    with pytest.raises(InputError, match=r"at most 10,000,000,000 weights; it would have 343,\d+,\d+,\d+ .*layers=20"):
        read(tmp_path, "hidden_size = 65536\nlayers = 20\nintermediate_size = 4")
    wide = read(tmp_path, "hidden_size = 32768\nlayers = 1\nintermediate_size = 4\nmax_length = 8")
    wide.check_size(25_426)
    with pytest.raises(InputError, match="it would have"):  # the vocabulary counts as soon as it is known
        wide.check_size(200_000)


def test_options_of_the_masker_in_a_file(tmp_path, capsys, cli_folder):
    graph = f"graph = '{cli_folder}/graph.safetensors'"
    for text in (
        "mlm_probability = true",
        "mlm_probability = nan",
        "mlm_probability = 'linear:0.1:0.2:1e9'",
        "strategy = 1",
        "replace = 'span'",
        "replace = true",
        "seed = '0'",
        "seed = -1",
        "graph = [1]",
        f"max_partners = 1000000000000\n{graph}\nstrategy = 'corrmask'",
        f"max_partners = true\n{graph}\nstrategy = 'corrmask'",
        f"structural_ratio = 2026-01-01\n{graph}\nstrategy = 'corrmask'",
        "n_latents = 1000000000000\nstrategy = 'mam'",
    ):
        (tmp_path / "run.toml").write_text(text + "\n")
        arguments = ["pretrain", cli_folder / "cells.npz", "--out", tmp_path / "run", "--config", tmp_path / "run.toml",
                     *(() if "strategy" in text else ("--strategy", "random")), "--no-progress"]  # fmt: skip
        assert main(list(map(str, arguments))) == 2, text
        out = capsys.readouterr().err
        assert out.count("\n") == 1, out
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", "7", '{"corpus": 1}', "1" * 5000, "\xff"])
def test_records_of_a_run_that_are_none(tmp_path, text):
    record = RunRecord("a", 5, "b", {"seed": 0}, "c", 0, 8, False)
    (tmp_path / "corrmask.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"corrmask.json is not a readable record of a run \(remove it"):
        record.check_folder(tmp_path)
    record.write_to(tmp_path, 3)
    assert record.check_folder(tmp_path) == 3


def test_memory_that_runs_out_is_one_line_with_what_to_change(capsys):
    class OutOfMemoryError(RuntimeError):
        pass

    arguments = build_parser().parse_args(["graph", "build", "cells.npz", "-o", "g.safetensors"])
    for error, message in (
        (MemoryError("Unable to allocate 8 TiB"), "not enough memory (MemoryError: Unable to allocate 8 TiB); give"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory (DefaultCPU"),
        (OutOfMemoryError("CUDA"), "not enough memory (CUDA)"),
        (RuntimeError("can't start new thread"), "no thread could be started; give --memory"),
    ):

        def run(_, error=error):
            raise error

        arguments.run = run
        assert _run(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert "fewer --threads or the process more memory" in said
    arguments.run = lambda _: {}["missing"]
    with pytest.raises(KeyError):
        _run(arguments)
