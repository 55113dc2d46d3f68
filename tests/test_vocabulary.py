"""Vocabularies: Geneformer's dictionaries of both generations, names and symbols, what is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import re

import numpy as np
import pytest

from corrmask_fast import DependencyGraph, InputError, Vocabulary

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


@pytest.mark.parametrize(
    ("gene", "meant"),
    [
        ("cd3e", "'CD3E'"),
        ("CD3", "'CD3D', 'CD3E' or 'CD3G'"),
        ("TP5", "'TP53'"),
        ("TP35", "'TP53'"),
        ("ENSG00000141510.18", "'ENSG00000141510'"),  # with a version
        ("p53 ", "'p53' or 'TP53'"),  # an alias
        ("ENSG00000141511", None),  # one digit off is another gene
        ("MALAT1", None),
        ("", None),
        (2.5, None),
    ],
)
def test_names_of_similar_spelling_are_suggested(gene, meant):
    ids = [f"ENSG0000014151{i}" for i in range(6) if i != 1]
    symbols = dict(zip(ids, ["CD3D", "CD3E", "CD3G", "TP53", "Actb"], strict=True))
    genes = Vocabulary(("<pad>", "<mask>", *ids), symbols, aliases={ids[3]: ("p53",)})
    with pytest.raises(InputError) as error:
        genes.id_of(gene)
    suggested = re.search(r"\(did you mean (.*)\?\); give a token id", str(error.value))
    assert (suggested and suggested[1]) == meant
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)  # errors of workers travel


def test_upper_and_lower_case():
    genes = Vocabulary(("<pad>", "<mask>", "CD3E", "Actb", "ACTB", "G"), {"G": "g2"})
    assert [genes.id_of(name, any_case=True) for name in ("cd3e", "Actb", "ACTB", "g", "G2", 2)] == [2, 3, 4, 5, 5, 2]
    with pytest.raises(InputError, match=r"no gene 'actb' .*did you mean 'Actb' or 'ACTB'\?"):  # which of two?
        genes.id_of("actb", any_case=True)
    with pytest.raises(InputError, match="did you mean 'CD3E'"):
        genes.id_of("cd3e")
    with pytest.raises(InputError, match="no gene '<PAD>'"):
        genes.id_of("<PAD>", any_case=True)


def test_many_unknown_genes_are_skipped_without_a_search(monkeypatch):
    """Similar names are looked for when a message is read, and messages of genes that are left out never are."""
    monkeypatch.setattr("corrmask_fast.cells.gene_names.did_you_mean", None)
    genes = Vocabulary(tuple(V1))
    pairs = [("ENSG01", f"ENSG0{i}x") for i in range(9)]
    assert DependencyGraph.from_edges(pairs, genes, unknown="skip").n_edges == 0


def test_symbols_of_genes_that_are_not_here_do_no_harm():
    genes = Vocabulary(tuple(V1), {"ENSG01": "A", "ENSG77": "B"})
    assert genes.id_of("A") == 2
    with pytest.raises(InputError, match="no gene 'B'"):
        genes.id_of("B")


def test_a_symbol_of_two_genes_means_the_one_with_the_lowest_id():
    for symbols in ({"ENSG01": "A", "ENSG02": "A"}, {"ENSG02": "A", "ENSG01": "A"}):
        for genes in (Vocabulary(tuple(V1), symbols), Vocabulary.from_token_dictionary(V1, symbols)):
            assert genes.id_of("A") == genes.tokens_by_name["A"] == 2
            assert (genes.name_of(2), genes.name_of(3)) == ("A", "A")
            assert genes.ambiguous_symbols == {"A"}


def test_all_symbols_of_a_gene_find_it_and_the_first_is_shown():
    genes = Vocabulary.from_token_dictionary(V1, {"P53": "ENSG02", "TRP53": "ENSG02", "LFS1": "ENSG02", "B": "ENSG01"})
    assert [genes.id_of(symbol) for symbol in ("P53", "TRP53", "LFS1", "B")] == [3, 3, 3, 2]
    assert (genes.name_of(3), genes.aliases) == ("P53", {"ENSG02": ("TRP53", "LFS1")})
    again = Vocabulary.from_json(genes.to_json())
    assert (again.symbols, again.aliases, again.tokens_by_name) == (genes.symbols, genes.aliases, genes.tokens_by_name)
    assert again.fingerprint == Vocabulary(tuple(V1)).fingerprint
    assert genes.ambiguous_symbols == frozenset()


def test_a_name_comes_before_a_symbol_and_a_symbol_before_an_alias():
    genes = Vocabulary(
        ("<pad>", "<mask>", "A", "B", "C"), {"A": "B", "C": "s", "B": "<pad>"}, aliases={"A": ["s", "t"]}
    )
    assert genes.tokens_by_name == {"A": 2, "B": 3, "C": 4, "s": 4, "t": 2}
    assert genes.ambiguous_symbols == {"s"}
    with pytest.raises(InputError, match="no gene '<pad>'"):
        genes.id_of("<pad>")


def test_symbols_of_a_file_are_shown_and_the_dictionarys_still_find():
    genes = Vocabulary(tuple(V1), {"ENSG01": "old", "ENSG02": "B"}, aliases={"ENSG01": ("older",)})
    new = genes.with_symbols({"ENSG01": "new", "ENSG02": "ENSG02", "ENSG03": "C", "ENSG77": "X"})
    assert [new.name_of(token) for token in (2, 3, 4)] == ["new", "B", "C"]
    assert [new.id_of(symbol) for symbol in ("new", "old", "older", "B", "C")] == [2, 2, 2, 3, 4]
    assert new.aliases == {"ENSG01": ("old", "older")}
    assert new.with_symbols({"ENSG01": "old"}).aliases == {"ENSG01": ("new", "older")}
    assert new.fingerprint == genes.fingerprint
    assert genes.name_of(2) == "old"


def test_the_direction_of_symbols_is_that_which_names_more_genes():
    crossed = {"ENSG01": "A", "ENSG02": "ENSG03"}  # a symbol that is another gene's name
    assert Vocabulary.from_token_dictionary(V1, crossed).symbols == crossed


def test_a_vocabulary_without_aliases_and_roles_is_stored_as_before():
    genes = Vocabulary(tuple(V1), {"ENSG01": "A"})
    assert genes.to_json() == '{"names": ["<pad>", "<mask>", "ENSG01", "ENSG02", "ENSG03"], "symbols": {"ENSG01": "A"}}'
    assert genes.fingerprint == hashlib.sha256(json.dumps(list(V1)).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------ files


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


def test_a_saved_vocabulary_is_no_token_dictionary(tmp_path):
    Vocabulary(tuple(V1)).save(tmp_path / "vocabulary.json")
    with pytest.raises(InputError, match=r"vocabulary\.json: this is a saved vocabulary.* Vocabulary\.load"):
        Vocabulary.from_token_dictionary(tmp_path / "vocabulary.json", {"TP53": "ENSG01"})


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


LONG = "x" * 10_000_000


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("<pad>", "A", ""), "text of 1 to 1000 characters; token 2 has ''"),
        (("<pad>", "A", 5), "token 2 has 5"),
        (("<pad>", "A", LONG), "token 2 has 'xxx"),
        (("<pad>", "A", "half \ud800"), "token 2 has 'half"),
        (("<pad>", None), "token 1 has None"),
        ("<pad>", "from a sequence of names in order of token id; got '<pad>'"),
        (V1, "Vocabulary.from_token_dictionary takes a dictionary"),
        (None, "from a sequence of names in order of token id; got None"),
    ],
    ids=range(8),
)
def test_names_are_text_one_a_token(names, message):
    with pytest.raises(InputError) as error:
        Vocabulary(names)
    assert message in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("symbols", "aliases"),
    [
        ({"A": 5}, {}), ({"A": ["a"]}, {}), ({5: "a"}, {}), ({"A": LONG}, {}), ("A", {}), ([("A", "a")], {}),
        ({}, {"A": 5}), ({}, {"A": [["a"]]}), ({}, ["a"]), ({"A": "\udfff"}, {}),
    ],
    ids=range(10),
)  # fmt: skip
def test_symbols_are_text(symbols, aliases):
    with pytest.raises(InputError, match="map gene names to symbols") as error:
        Vocabulary(("<pad>", "A"), symbols, aliases=aliases)
    assert len(str(error.value)) < 400


def test_an_empty_symbol_is_none():
    assert Vocabulary(tuple(V1), {"ENSG01": ""}).symbols == {}
    assert Vocabulary.from_token_dictionary(V1, {"": "ENSG01", "B": "ENSG02"}).symbols == {"ENSG02": "B"}


def test_a_name_that_stands_twice():
    with pytest.raises(InputError, match="the vocabulary names 'A' twice"):
        Vocabulary(("<pad>", "<mask>", "A", "B", "A"))


NOT_STORED = [
    "", "[]", "{}", '{"names": 3, "symbols": {}}', '{"names": [], "symbols": []}', "[" * 100_000, b"\xff\xfe\x00", None,
    '{"names": "<pad>", "symbols": {}}', '{"names": ["<pad>", "A"], "symbols": {}, "roles": 3}',
    '{"names": ["<pad>", "A"], "symbols": {}, "roles": {"unknown": 3}}',
    '{"names": [' + "9" * 5000 + '], "symbols": {}}',
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_STORED, ids=range(len(NOT_STORED)))
def test_what_is_no_stored_vocabulary(text):
    with pytest.raises(InputError, match="not a vocabulary written by this project"):
        Vocabulary.from_json(text)


def test_a_damaged_file_of_a_vocabulary_is_named(tmp_path):
    for text in NOT_STORED[-4:]:
        path = write(tmp_path / "vocabulary.json", text)
        with pytest.raises(InputError, match=r"vocabulary\.json"):
            Vocabulary.load(path)
    path = write(tmp_path / "vocabulary.pkl", pickle.dumps({"names": [1], "symbols": 2}))
    with pytest.raises(InputError, match=r"vocabulary\.pkl: not a vocabulary"):
        Vocabulary.load(path)


def test_a_stored_vocabulary_holds_what_a_vocabulary_takes():
    with pytest.raises(InputError, match="'names' stands twice"):
        Vocabulary.from_json('{"names": ["<pad>", "A"], "symbols": {}, "names": ["<pad>", "B"]}')
    with pytest.raises(InputError, match="token 1 has 5"):
        Vocabulary.from_json('{"names": ["<pad>", 5], "symbols": {}}')


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
