"""Genes and special tokens: which token id is which gene."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corrmask_fast.errors import InputError, as_integer
from corrmask_fast.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Vocabulary"]

# What json and pickle raise on files that are broken, or made to break them.
_UNREADABLE = (
    ValueError, EOFError, pickle.UnpicklingError, AttributeError, IndexError, TypeError, KeyError, MemoryError,
    OverflowError, RecursionError,
)  # fmt: skip
_NEEDS_SPECIALS = "a vocabulary needs '<pad>' and '<mask>', and Geneformer's token dictionaries all have both"
DICTIONARY_FILE = "token_dictionary.json"  # beside the weights of a model that this package wrote
SPECIAL_TOKENS = ("<pad>", "<mask>", "<cls>", "<eos>")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token ids of genes and special tokens.

    Ids run from 0 to ``size - 1`` without a gap; the genes form one contiguous range ``gene_range``. The special
    tokens are ``<pad>`` and ``<mask>`` (Geneformer V1), with ``<cls>`` and ``<eos>`` beside them in V2.

    Parameters
    ----------
    names
        The name of each token id, in order of id: ``<...>`` for special tokens, Ensembl ids or symbols for genes.
    symbols
        Gene name → symbol, for those that have one. Symbols serve to find and to show genes, nothing else.

    Raises
    ------
    InputError
        If ``<pad>`` or ``<mask>`` is missing, a name repeats, or the genes are not contiguous.

    Examples
    --------
    >>> vocabulary = Vocabulary(("<pad>", "<mask>", "RPL3", "RPS6"))
    >>> vocabulary.size, vocabulary.gene_range, vocabulary.id_of("RPS6")
    (4, (2, 4), 3)
    """

    names: tuple[str, ...]
    symbols: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self._ids) != len(self.names):
            seen: set[str] = set()
            twice = next(name for name in self.names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(f"the vocabulary names {twice!r} twice; every token needs a name of its own")
        for name in SPECIAL_TOKENS[:2]:
            if name not in self._ids:
                raise InputError(f"the vocabulary has no {name!r} token; {_NEEDS_SPECIALS}")
        lo, hi = self.gene_range
        inside = next((name for name in self.names[lo:hi] if _is_special(name)), None)
        if inside is not None:
            raise InputError(
                f"gene tokens must be contiguous, but the special token {inside!r} (id {self._ids[inside]}) lies "
                f"between the genes' ids {lo} and {hi - 1}; renumber the token dictionary"
            )
        if lo == hi:
            raise InputError("the vocabulary has no genes, only special tokens")

    @classmethod
    def from_token_dictionary(
        cls, tokens: str | os.PathLike[str] | Mapping[str, int], symbols: Any = None
    ) -> Vocabulary:
        """Read a Geneformer token dictionary.

        Parameters
        ----------
        tokens
            Name → id: a mapping, or the path of a ``.json`` or ``.pkl`` file. Pickles pass a reader that admits
            dictionaries, strings and numbers, so no file can run code.
        symbols
            Symbol → gene name, as Geneformer's ``gene_name_id_dict`` has it (mapping or path; the other direction
            is recognised too).

        Raises
        ------
        InputError
            If the file holds anything but a dictionary of names and ids, ids repeat or leave gaps, special tokens lie
            among the genes, ``<pad>`` or ``<mask>`` is missing, or no symbol is of a gene here.
        """
        try:
            names = _names_by_id(read_dictionary(tokens))
        except InputError as error:
            if not isinstance(tokens, str | os.PathLike) or str(tokens) in str(error):
                raise
            raise InputError(f"{tokens}: {error}") from error
        ids = set(names)
        table = {} if symbols is None else read_dictionary(symbols)
        table = {key: value for key, value in table.items() if isinstance(key, str) and isinstance(value, str)}
        if not any(gene in ids for gene in table.values()):
            table = {symbol: gene for gene, symbol in table.items()}
        by_gene: dict[str, str] = {}
        for symbol, gene in table.items():
            if gene in ids:
                by_gene.setdefault(gene, symbol)
        if symbols is not None and not by_gene:
            named = symbols if isinstance(symbols, str | os.PathLike) else "the symbols given"
            raise InputError(
                f"no symbol of {named} names a gene of the token dictionary; "
                "give the gene_name_id_dict that belongs to it, or leave the symbols out"
            )
        return cls(names, by_gene)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: token for token, name in enumerate(self.names)}

    @cached_property
    def _ids_by_symbol(self) -> dict[str, int]:
        here = {gene: symbol for gene, symbol in self.symbols.items() if gene in self._ids}
        return {symbol: self._ids[gene] for gene, symbol in reversed(here.items())}  # of two genes the first has it

    @property
    def size(self) -> int:
        """Number of token ids, V."""
        return len(self.names)

    @property
    def pad_token_id(self) -> int:
        """Id of ``<pad>``."""
        return self._ids["<pad>"]

    @property
    def mask_token_id(self) -> int:
        """Id of ``<mask>``."""
        return self._ids["<mask>"]

    @property
    def cls_token_id(self) -> int | None:
        """Id of ``<cls>``, or None (V1)."""
        return self._ids.get("<cls>")

    @property
    def eos_token_id(self) -> int | None:
        """Id of ``<eos>``, or None (V1)."""
        return self._ids.get("<eos>")

    @property
    def n_surrounding(self) -> int:
        """How many tokens a cell in training has besides its genes: ``<cls>`` before, ``<eos>`` behind; V1: none."""
        return sum(token is not None for token in (self.cls_token_id, self.eos_token_id))

    @cached_property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, ascending: these are never masked."""
        return tuple(token for token, name in enumerate(self.names) if _is_special(name))

    @cached_property
    def gene_range(self) -> tuple[int, int]:
        """(lo, hi): the genes are the ids lo <= id < hi."""
        genes = [token for token, name in enumerate(self.names) if not _is_special(name)]
        return (genes[0], genes[-1] + 1) if genes else (0, 0)

    @property
    def max_length(self) -> int:
        """Longest cell in tokens, special tokens included: 2048 (V1), 4096 (V2, which has ``<cls>``)."""
        return 2048 if self.cls_token_id is None else 4096

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """The smallest of uint16 and int32 that holds every id: how a corpus stores its tokens."""
        return np.dtype(np.uint16 if self.size <= 65536 else np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all names in order of id: equal exactly where token ids mean the same."""
        return hashlib.sha256(json.dumps(self.names).encode()).hexdigest()

    def _token_named(self, name: str) -> int | None:
        return self._ids[name] if name in self._ids else self._ids_by_symbol.get(name)

    def id_of(self, gene: str | int) -> int:
        """Token id of a gene given by id, name or symbol.

        Raises
        ------
        InputError
            If there is no such gene.
        """
        token = self._token_named(gene) if isinstance(gene, str) else as_integer(gene)
        lo, hi = self.gene_range
        if token is None or not lo <= token < hi:
            raise InputError(
                f"no gene {gene!r} in this vocabulary of {hi - lo} genes; "
                f"give a token id from {lo} to {hi - 1}, or a name such as {self.names[lo]!r}"
            )
        return token

    def name_of(self, token: int) -> str:
        """Symbol of a token where there is one, else its name."""
        name = self.names[token]
        return self.symbols.get(name, name)

    def check_same(self, other: Vocabulary, mine: str, theirs: str) -> None:
        """Raise InputError unless ``other`` gives every id the same meaning; ``mine``, ``theirs`` name the two."""
        if self.fingerprint == other.fingerprint:
            return
        differ = next((t for t, (a, b) in enumerate(zip(self.names, other.names, strict=False)) if a != b), None)
        where = (
            f"{self.size} against {other.size} tokens"
            if differ is None
            else f"token {differ} is {self.names[differ]!r} in one and {other.names[differ]!r} in the other"
        )
        raise InputError(f"{mine} and {theirs} have different vocabularies ({where}); use the same token dictionary")

    def to_json(self) -> str:
        """Return the vocabulary as JSON text: names in order of id, and symbols."""
        return json.dumps({"names": list(self.names), "symbols": dict(self.symbols)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Vocabulary:
        """Return the vocabulary that :meth:`to_json` wrote."""
        try:
            content = json.loads(text)
            return cls(tuple(map(str, content["names"])), {str(k): str(v) for k, v in content["symbols"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not a vocabulary written by this project: {error!r}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as a JSON file."""
        with atomic_file(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what :meth:`save` wrote, or a Geneformer token dictionary."""
        path = Path(path)
        if path.suffix == ".json" and path.is_file() and set(read_dictionary(path)) == {"names", "symbols"}:
            return cls.from_json(path.read_bytes())
        return cls.from_token_dictionary(path)

    def __repr__(self) -> str:
        lo, hi = self.gene_range
        specials = " ".join(self.names[token] for token in self.special_token_ids)
        return f"Vocabulary({hi - lo} genes, ids {lo} to {hi - 1}; {specials})"


def read_dictionary(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a dictionary given as a mapping, a ``.json`` file or a ``.pkl`` file of plain values."""
    if not isinstance(source, str | os.PathLike):
        return dict(source)
    path = Path(source)
    if path.suffix not in {".json", ".pkl", ".pickle"}:
        raise InputError(f"a dictionary must be a .json or .pkl file; got {path}")
    if not path.is_file():
        raise InputError(
            f"no file at {path}; give a .json or .pkl dictionary, such as Geneformer's token_dictionary.pkl, "
            "gene_median_dictionary.pkl or gene_name_id_dict.pkl"
        )
    with path.open("rb") as file:
        try:
            content = json.load(file) if path.suffix == ".json" else _PlainUnpickler(file).load()
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except _UNREADABLE as error:
            raise InputError(f"{path} is not a readable {path.suffix} dictionary: {error!r}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dictionary; it holds a {type(content).__name__}")
    return content


def _names_by_id(tokens: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a token dictionary in order of id."""
    for name in SPECIAL_TOKENS[:2]:
        if name not in tokens:
            raise InputError(f"the vocabulary has no {name!r} token; {_NEEDS_SPECIALS}")
    ids = {name: _check_id(name, value) for name, value in tokens.items()}
    names: dict[int, str] = {}
    for name, token in ids.items():
        if not 0 <= token < len(ids) or token in names:
            raise InputError(
                f"token ids must be 0 to {len(ids) - 1} for {len(ids)} names, each once; "
                f"{name!r} has {token}; renumber the token dictionary"
            )
        names[token] = name
    return tuple(names[token] for token in range(len(ids)))


def _check_id(name: Any, value: Any) -> int:
    token = as_integer(value)
    if not isinstance(name, str) or token is None:
        raise InputError(f"a token dictionary maps names to integer ids; it has {name!r}: {value!r}")
    return token


def _is_special(name: str) -> bool:
    return name.startswith("<") and name.endswith(">")


class _PlainUnpickler(pickle.Unpickler):
    """Admits dict, str and numbers, and NumPy's numeric scalars as plain numbers; nothing else can be built."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}:
            return _plain_scalar
        if (module, name) == ("numpy", "dtype"):
            return _PlainDtype
        raise InputError(
            f"refused: the pickle asks for {module}.{name}, and a dictionary of names and numbers needs no code; "
            "take the file from its original source, or convert it to JSON"
        )


class _PlainDtype:
    """What a pickled ``numpy.dtype`` says, without handing NumPy a state made elsewhere."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def to_numpy(self) -> np.dtype[Any]:
        if self.code not in {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}:
            raise InputError(f"refused: the pickle holds a NumPy value of type {self.code!r}, not a number")
        return np.dtype(self.code).newbyteorder(">" if self.order == ">" else "<")


def _plain_scalar(dtype: _PlainDtype, data: bytes) -> int | float:
    return np.frombuffer(data, dtype.to_numpy())[0].item()
