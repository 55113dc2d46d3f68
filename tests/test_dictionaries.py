"""Dictionaries in files: pickles and JSON from elsewhere, hostile and broken ones."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import struct
import sys
import tracemalloc

import numpy as np
import pytest

from corrmask_fast import InputError, Vocabulary
from corrmask_fast.cells.vocabulary import read_dictionary

V1 = {"<pad>": 0, "<mask>": 1, "ENSG01": 2, "ENSG02": 3, "ENSG03": 4}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_pickles_with_numpy_numbers_are_cast(tmp_path):
    """Geneformer's own pickle holds NumPy int16 values."""
    for kind in (np.int16, np.int64, np.dtype(">i4").type):
        numbers = {name: kind(token) if token > 1 else token for name, token in V1.items()}
        path = write(tmp_path / f"{kind.__name__}.pkl", pickle.dumps(numbers))
        genes = Vocabulary.from_token_dictionary(path)
        assert genes.names == tuple(V1)
        assert all(type(value) is int for value in read_dictionary(path).values())
        assert Vocabulary.from_token_dictionary(numbers).names == tuple(V1)  # as somebody's own pickle.load has them


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol(tmp_path, protocol):
    path = write(tmp_path / "tokens.pkl", pickle.dumps({**V1, "ENSG03": np.int16(4)}, protocol))
    if protocol < 3:  # bytes of NumPy's scalars go through _codecs.encode there
        with pytest.raises(InputError, match="refused"):
            Vocabulary.from_token_dictionary(path)
        path = write(path, pickle.dumps(V1, protocol))
    assert Vocabulary.from_token_dictionary(path).names == tuple(V1)


class Hostile:
    """Runs a command when it is loaded by an ordinary unpickler."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    mark = tmp_path / "was-here"
    for name, content in (("plain", Hostile(mark)), ("inside", {"<pad>": 0, "x": [Hostile(mark)]})):
        path = write(tmp_path / f"{name}.pkl", pickle.dumps(content))
        with pytest.raises(InputError, match=r"refused: the pickle asks for (posix|nt)\.system"):
            Vocabulary.from_token_dictionary(path)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # the danger is real
    assert mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"), ("builtins", "getattr"), ("os", "system"), ("numpy", "load"), ("numpy", "memmap"),
        ("numpy.core.multiarray", "_reconstruct"), ("numpy", "dtype.type"), ("numpy._core.multiarray", "scalar.x"),
        ("collections", "OrderedDict"), ("corrmask_fast.cells.vocabulary", "_plain_scalar"),
    ],
)  # fmt: skip
def test_no_other_name_can_be_asked_for(tmp_path, module, name):
    def text(value):
        return b"\x8c" + bytes([len(value)]) + value.encode()

    code = b"\x80\x04" + text(module) + text(name) + b"\x93)R."
    pickletools.dis(code, out=open(os.devnull, "w"))  # noqa: SIM115, PTH123 (the bytes are a pickle)
    with pytest.raises(InputError, match="refused"):
        read_dictionary(write(tmp_path / "tokens.pkl", code))


def test_numpy_objects_in_a_pickle_are_numbers_or_refused(tmp_path):
    for value in (
        np.array([1, 2]),
        np.datetime64(1, "s"),
        np.str_("a"),
        np.bool_(True),
        np.complex64(1),
        np.void(b"a"),
    ):
        with pytest.raises(InputError):
            Vocabulary.from_token_dictionary(write(tmp_path / "tokens.pkl", pickle.dumps({**V1, "ENSG04": value})))


BROKEN = [
    (".pkl", b"", "not a readable .pkl dictionary"),
    (".pkl", pickle.dumps(V1)[:-9], "not a readable .pkl dictionary"),
    (".pkl", b"this is no pickle", "not a readable .pkl dictionary"),
    (".pkl", b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".", "not a readable .pkl dictionary"),
    (".pkl", b"\x80\x04" + b"]" * 3 + b"a" * 9 + b".", "not a readable .pkl dictionary"),
    (".pkl", pickle.dumps([1, 2]), "must hold a dictionary; it holds a list"),
    (".json", b"[1, 2]", "must hold a dictionary; it holds a list"),
    (".json", b'{"<pad>": 0,', "not a readable .json dictionary"),
    (".json", b"\xff\xfe\x00", "not a readable .json dictionary"),
    (".json", b"[" * 100_000, "not a readable .json dictionary"),
    (".json", b'{"<pad>": ' + b"9" * 5000 + b"}", "not a readable .json dictionary"),
    (".json", b'{"<pad>": 0, "A": 1, "A": 2}', "'A' stands twice"),
    (".json", b'{"<pad>": 0, "A": 1, "B": {"x": 1, "x": 2}}', "'x' stands twice"),
    (".txt", b"{}", "must be a .json or .pkl file"),
]


@pytest.mark.parametrize(("suffix", "content", "message"), BROKEN, ids=range(len(BROKEN)))
def test_broken_files(tmp_path, suffix, content, message):
    path = write(tmp_path / f"tokens{suffix}", content)
    with pytest.raises(InputError) as error:
        Vocabulary.from_token_dictionary(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises((InputError, FileNotFoundError), match=r"nothing\.pkl"):
        Vocabulary.from_token_dictionary(tmp_path / "nothing.pkl")


@pytest.mark.parametrize("source", [[1], None, 5, 2.5, [("<pad>", 0)], dict], ids=str)
def test_what_is_no_dictionary(source):
    with pytest.raises(InputError, match=r"dictionary"):
        Vocabulary.from_token_dictionary(source)


def test_a_file_may_hold_lists_and_other_plain_values(tmp_path):
    content = {"a": [1, [2.5, None]], "b": {"c": (True, "d", b"e")}, "n": -(2**63), "l": [*range(2000)], 3: "three"}
    for protocol in range(3, pickle.HIGHEST_PROTOCOL + 1):
        assert read_dictionary(write(tmp_path / "x.pkl", pickle.dumps(content, protocol))) == content
    plain = {name: value for name, value in content.items() if name != "b"}  # bytes came with protocol 3
    for protocol in (0, 1, 2):
        assert read_dictionary(write(tmp_path / "x.pkl", pickle.dumps(plain, protocol))) == plain


# ------------------------------------------------------------------------------------------- pickles written by hand


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


SCALAR = text("numpy._core.multiarray") + text("scalar") + b"\x93"


def scalar(code="i2", data=b"\x01\x00", state=b""):
    """NumPy's own way to pickle a number."""
    dtype = text("numpy") + text("dtype") + b"\x93" + text(code) + b"\x89\x88\x87R" + state
    number = b"C" + bytes([len(data)]) + data
    return SCALAR + dtype + number + b"\x86R"


def doubled(value, levels):
    for _ in range(levels):
        value = value, value
    return value


HOSTILE = {
    "an integer of 20 000 digits": pickle.dumps({"<pad>": 0, "A": 10**20_000}),
    "an integer of a kilobyte": b"\x80\x04}" + text("A") + b"\x8b" + struct.pack("<i", 1000) + b"\x01" * 1000 + b"s.",
    "tuples of tuples as a value": pickle.dumps({"<pad>": 0, "A": doubled("a", 40)}),
    "tuples of tuples as a key": b"\x80\x04}" + pickle.dumps(doubled("a", 40), 4)[11:-1] + b"K\x01s.",
    "a number kept at place 2**31 - 1": b"\x80\x04}r" + struct.pack("<I", 2**31 - 1) + b"K\x01K\x02.",
    "a bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "a text of 2**62": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"a.",
    "a frame of 2**62 and nothing": b"\x80\x04\x95" + struct.pack("<Q", 2**62),
    "an object kept elsewhere": b"\x80\x02}Q.",
    "an object kept elsewhere, by text": b"Pabc\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "a new object": b"\x80\x04" + text("numpy") + text("dtype") + b"\x93)\x81.",
    "a class called with too little": b"\x80\x04" + text("numpy") + text("dtype") + b"\x93)R.",
    "a function called with too much": b"\x80\x04" + SCALAR + b"(K\x01K\x02K\x03tR.",
    "the state of a function": b"\x80\x04" + SCALAR + b"}" + text("x") + b"K\x01sb.",
    "the state of a dictionary": b"\x80\x04}}" + text("x") + b"K\x01sb.",
    "a state that is too short": b"\x80\x04}" + text("A") + scalar(state=b")b") + b"s.",
    "a state of another order": b"\x80\x04}" + text("A") + scalar(state=b"K\x03" + text("?") + b"\x86b") + b"s.",
    "a number of too few bytes": b"\x80\x04}" + text("A") + scalar("f8", b"\x00") + b"s.",
    "an object as a number's type": b"\x80\x04}" + text("A") + scalar("O8", b"\x00" * 8) + b"s.",
    "a value put into a number": b"\x80\x04K\x01" + text("A") + b"K\x01s.",
    "half an item": b"\x80\x04}(" + text("A") + b"u.",
    "a name twice": b"\x80\x04}(" + 2 * (text("A") + b"K\x01") + b"u.",
    "a list as a key": b"\x80\x04}]K\x01s.",
    "a set": pickle.dumps({"A": {1, 2}}, 4),
    "a frozen set": pickle.dumps({"A": frozenset({1})}, 4),
    "an empty stack": b"\x80\x04.",
    "nothing marked": b"\x80\x04}u.",
    "nothing kept": b"\x80\x04h\x05.",
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_in_one_line_and_with_little_work(tmp_path, content):
    path = write(tmp_path / "tokens.pkl", content)
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count)
    try:
        with pytest.raises(InputError) as error:
            Vocabulary.from_token_dictionary(path)
    finally:
        sys.setprofile(None)
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert calls < 2_000 + 20 * len(content)
    assert largest < 100_000 + 20 * len(content)  # bytes
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))
    # What was read leaves no trace in the reader.
    assert Vocabulary.from_token_dictionary(write(path, b"\x80\x04}(" + b"".join([
        text("<pad>") + b"K\x00", text("A") + scalar(), b"u."
    ]))).names == ("<pad>", "A")  # fmt: skip


def test_a_dictionary_that_holds_itself_is_read_in_bounded_time(tmp_path):
    content = {"<pad>": 0, "A": [1]}
    content["A"].append(content["A"])
    content["B"] = content
    with pytest.raises(InputError, match="maps names to integer ids"):
        Vocabulary.from_token_dictionary(write(tmp_path / "tokens.pkl", pickle.dumps(content)))


BAD_VALUES = [
    10**20_000,
    doubled("a", 40),
    "x" * 10**7,
    [["y"] * 10**5],
    float("nan"),
    float("inf"),
    np.array([1]),
    object(),
]


@pytest.mark.parametrize("value", BAD_VALUES, ids=range(len(BAD_VALUES)))
def test_messages_are_short_whatever_the_value(value):
    with pytest.raises(InputError) as error:
        Vocabulary.from_token_dictionary({"<pad>": 0, "A" * 10**6: value})
    assert len(str(error.value)) < 500


def test_numbers_that_are_true_or_fractions_are_no_ids(tmp_path):
    for value in (True, False, 1.0, None):
        for path in (tmp_path / "tokens.json", tmp_path / "tokens.pkl"):
            content = {"<pad>": 0, "A": value}
            write(path, json.dumps(content) if path.suffix == ".json" else pickle.dumps(content))
            with pytest.raises(InputError, match="maps names to integer ids; it has 'A'"):
                Vocabulary.from_token_dictionary(path)
