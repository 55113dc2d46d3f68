"""Vocabularies: Geneformer's dictionaries of both generations, hostile and broken files, names and symbols."""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest

from corrmask_fast import InputError, Vocabulary
from corrmask_fast.cells.vocabulary import read_dictionary

V1 = {"<pad>": 0, "<mask>": 1, "ENSG01": 2, "ENSG02": 3, "ENSG03": 4}
V2 = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG01": 4, "ENSG02": 5}


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------------------------------- what it is


def test_first_generation():
    genes = Vocabulary.from_token_dictionary(V1)
    assert (genes.size, genes.gene_range, genes.max_length) == (5, (2, 5), 2048)
    assert (genes.pad_token_id, genes.mask_token_id, genes.cls_token_id, genes.eos_token_id) == (0, 1, None, None)
    assert genes.special_token_ids == (0, 1)
    assert genes.names == tuple(V1)
    assert repr(genes) == "Vocabulary(3 genes, ids 2 to 4; <pad> <mask>)"


def test_second_generation():
    genes = Vocabulary.from_token_dictionary(V2)
    assert (genes.size, genes.gene_range, genes.max_length) == (6, (4, 6), 4096)
    assert (genes.cls_token_id, genes.eos_token_id, genes.special_token_ids) == (2, 3, (0, 1, 2, 3))
    assert genes.n_surrounding == 2


def test_special_tokens_may_stand_behind_the_genes():
    genes = Vocabulary(("A", "B", "<mask>", "<pad>"))
    assert (genes.gene_range, genes.pad_token_id, genes.mask_token_id) == ((0, 2), 3, 2)
    assert genes.special_token_ids == (2, 3)


def test_the_order_of_a_dictionary_does_not_matter():
    shuffled = dict(sorted(V1.items(), key=lambda item: -item[1]))
    assert Vocabulary.from_token_dictionary(shuffled).names == tuple(V1)


@pytest.mark.parametrize(("size", "dtype"), [(65536, np.uint16), (65537, np.int32)])
def test_tokens_are_stored_in_the_smallest_type(size, dtype):
    genes = Vocabulary(("<pad>", "<mask>", *map(str, range(size - 2))))
    assert genes.token_dtype == dtype
    assert np.iinfo(genes.token_dtype).max >= genes.size - 1


def test_real_dictionary(data_folder):
    folder = data_folder / "geneformer"
    symbols = folder / "gene_name_id_dict.json"
    from_pickle = Vocabulary.from_token_dictionary(folder / "token_dictionary.pkl", symbols)
    from_json = Vocabulary.from_token_dictionary(folder / "token_dictionary.json", folder / "gene_name_id_dict.json")
    assert (from_pickle.size, from_pickle.gene_range) == (25426, (2, 25426))
    assert from_pickle.names == from_json.names
    assert from_pickle.fingerprint == from_json.fingerprint
    assert from_pickle.name_of(from_pickle.id_of("RPL3")) == from_json.name_of(from_json.id_of("RPL3")) == "RPL3"


# ------------------------------------------------------------------------------------------------- names and symbols


def test_genes_are_found_by_id_name_and_symbol():
    for symbols in ({"TP53": "ENSG02", "X": "ENSG99"}, {"ENSG02": "TP53"}):  # either direction
        genes = Vocabulary.from_token_dictionary(V1, symbols)
        assert [genes.id_of(gene) for gene in (3, np.int16(3), "ENSG02", "TP53")] == [3] * 4
        assert (genes.name_of(3), genes.name_of(2), genes.name_of(0)) == ("TP53", "ENSG01", "<pad>")


# Digits in quotes are no token id: ids of other databases, such as Entrez, look the same.
@pytest.mark.parametrize("gene", [0, 1, 5, -1, "<pad>", "TP53", "3", "99", "", "²", "-3", 2.5, None, True, ("ENSG02",)])
def test_what_is_no_gene(gene):
    with pytest.raises(InputError) as error:
        Vocabulary.from_token_dictionary(V1).id_of(gene)
    assert str(error.value) == (
        f"no gene {gene!r} in this vocabulary of 3 genes; give a token id from 2 to 4, or a name such as 'ENSG01'"
    )


def test_symbols_of_genes_that_are_not_here_do_no_harm():
    genes = Vocabulary(tuple(V1), {"ENSG01": "A", "ENSG77": "B"})
    assert genes.id_of("A") == 2
    with pytest.raises(InputError, match="no gene 'B'"):
        genes.id_of("B")


def test_the_first_of_two_genes_keeps_a_symbol():
    genes = Vocabulary(tuple(V1), {"ENSG01": "A", "ENSG02": "A"})
    assert genes.id_of("A") == 2


# ------------------------------------------------------------------------------------------------------------ files


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


def test_files_written_by_hand_and_by_us(tmp_path):
    genes = Vocabulary(tuple(V2), {"ENSG01": "TP53"})
    genes.save(tmp_path / "vocabulary.json")
    for again in (
        Vocabulary.load(tmp_path / "vocabulary.json"),
        Vocabulary.from_json(genes.to_json()),
        pickle.loads(pickle.dumps(genes)),
    ):
        assert (again.names, dict(again.symbols)) == (genes.names, {"ENSG01": "TP53"})
        assert again.fingerprint == genes.fingerprint
    path = write(tmp_path / "tokens.json", json.dumps(V2))
    assert Vocabulary.load(path).names == genes.names
    assert Vocabulary.load(write(tmp_path / "tokens.pkl", pickle.dumps(V2))).names == genes.names


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


# -------------------------------------------------------------------------------------------------------- bad content

BAD_DICTIONARIES = [
    ({**V1, "ENSG04": 6}, "token ids must be 0 to 5 for 6 names, each once; 'ENSG04' has 6"),
    ({**V1, "ENSG04": 4}, "'ENSG04' has 4; renumber the token dictionary"),
    ({**V1, "ENSG04": -1}, "'ENSG04' has -1"),
    ({**V1, "ENSG04": 5.0}, "maps names to integer ids; it has 'ENSG04': 5.0"),
    ({**V1, "ENSG04": "5"}, "it has 'ENSG04': '5'"),
    ({**V1, "ENSG04": True}, "it has 'ENSG04': True"),
    ({**V1, "ENSG04": None}, "it has 'ENSG04': None"),
    ({**V1, 5: 5}, "it has 5: 5"),
    ({"<pad>": 0, "A": 1}, "the vocabulary has no '<mask>' token"),
    ({"<mask>": 0, "A": 1}, "the vocabulary has no '<pad>' token"),
    ({}, "the vocabulary has no '<pad>' token"),
    ({"<pad>": 0, "<mask>": 1}, "the vocabulary has no genes, only special tokens"),
    (
        {"<pad>": 0, "A": 1, "<mask>": 2, "B": 3},
        "gene tokens must be contiguous, but the special token '<mask>' (id 2)",
    ),
]


def test_a_bad_file_is_named_with_what_it_lacks(tmp_path):
    path = tmp_path / "medians.json"
    path.write_text(json.dumps({"ENSG01": 1.5, "ENSG02": 2.5}))
    with pytest.raises(InputError, match=r"medians\.json: the vocabulary has no '<pad>' token") as error:
        Vocabulary.from_token_dictionary(path)
    assert "renumber" not in str(error.value)


def test_symbols_of_no_gene_are_refused():
    with pytest.raises(InputError, match="no symbol of the symbols given names a gene"):
        Vocabulary.from_token_dictionary(V1, {"TP53": "ENSMUSG01"})


@pytest.mark.parametrize(("tokens", "message"), BAD_DICTIONARIES, ids=range(len(BAD_DICTIONARIES)))
def test_bad_dictionaries(tokens, message):
    with pytest.raises(InputError) as error:
        Vocabulary.from_token_dictionary(tokens)
    assert message in str(error.value)


def test_what_is_no_symbol_is_left_out():
    genes = Vocabulary.from_token_dictionary(V1, {"A": ["ENSG01"], "B": float("nan"), "C": "ENSG02", 3: "ENSG03"})
    assert genes.symbols == {"ENSG02": "C"}


def test_a_name_that_stands_twice():
    with pytest.raises(InputError, match="the vocabulary names 'A' twice"):
        Vocabulary(("<pad>", "<mask>", "A", "B", "A"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"names": 3, "symbols": {}}', '{"names": [], "symbols": []}'])
def test_what_is_no_stored_vocabulary(text):
    with pytest.raises(InputError, match="not a vocabulary written by this project"):
        Vocabulary.from_json(text)


# ------------------------------------------------------------------------------------------------------ fingerprints


def test_fingerprints_differ_where_ids_mean_something_else():
    names = [
        ("<pad>", "<mask>", "A", "B"),
        ("<pad>", "<mask>", "B", "A"),
        ("<mask>", "<pad>", "A", "B"),
        ("<pad>", "<mask>", "A", "B", "C"),
        ("<pad>", "<mask>", "A\nB", "C"),
        ("<pad>", "<mask>", "A", "B\nC"),
    ]
    assert len({Vocabulary(each).fingerprint for each in names}) == len(names)
    symbols = Vocabulary(names[0], {"A": "a"})
    assert symbols.fingerprint == Vocabulary(names[0]).fingerprint


def test_different_vocabularies_are_told_apart():
    mine = Vocabulary(("<pad>", "<mask>", "A", "B"))
    mine.check_same(Vocabulary(mine.names), "the graph", "the corpus")
    with pytest.raises(InputError, match=r"the graph and the corpus have .*token 3 is 'B' in one and 'C' in the other"):
        mine.check_same(Vocabulary(("<pad>", "<mask>", "A", "C")), "the graph", "the corpus")
    with pytest.raises(InputError, match="4 against 5 tokens"):
        mine.check_same(Vocabulary((*mine.names, "C")), "the graph", "the corpus")
