"""Dictionaries in files: of tokens, symbols or medians, as JSON or as a pickle of plain values."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corrmask_fast.cells.plain_pickle import read_plain_pickle
from corrmask_fast.cells.special_tokens import no_padding
from corrmask_fast.errors import InputError, as_integer, readable, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "checked_names", "is_saved_vocabulary", "names_by_id", "pairs_of_symbols", "parse_json",
    "read_dictionary", "symbols_by_gene",
]  # fmt: skip

MAX_NAME_CHARS = 1000  # characters


def read_dictionary(source: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Return a dictionary given as a mapping, a ``.json`` file or a ``.pkl`` file of plain values.

    Raises
    ------
    InputError
        If it is none of these, the file cannot be read, holds anything but a dictionary of plain values, or has a
        name twice.
    """
    if not isinstance(source, str | os.PathLike):
        if isinstance(source, Mapping) or hasattr(source, "keys"):  # a pandas Series too
            with readable("what was given", "dictionary"):
                return dict(source)
        raise InputError(f"a dictionary must be a mapping, or the path of a .json or .pkl file; got {shown(source)}")
    path = Path(source)
    if path.suffix not in {".json", ".pkl", ".pickle"}:
        raise InputError(f"a dictionary must be a .json or .pkl file; got {path}")
    if not path.is_file():
        raise InputError(
            f"no file at {path}; give a .json or .pkl dictionary, such as Geneformer's token_dictionary.pkl, "
            "gene_median_dictionary.pkl or gene_name_id_dict.pkl"
        )
    with readable(path, f"{path.suffix} dictionary"):
        content = (parse_json if path.suffix == ".json" else read_plain_pickle)(path.read_bytes())
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a dictionary; it holds a {type(content).__name__}")
    return content


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text holds; a name that stands twice in one object is refused, for one value would be lost."""
    return json.loads(text, object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = _first_twice([name for name, _ in pairs])
        raise InputError(f"{shown(twice)} stands twice; a dictionary must have each name once")
    return content


def _first_twice(names: Iterable[str]) -> str:
    seen: set[str] = set()
    return next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def is_text(name: Any) -> bool:
    """Whether a name can be stored and shown."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        return False
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)  # halves of letters


def pairs_of_symbols(table: Mapping[Any, Any], genes: set[str]) -> list[tuple[str, str]]:
    """Return (gene, symbol) of a table in either direction; what is no text is left out."""
    texts = [(key, value) for key, value in table.items() if is_text(key) and is_text(value)]
    by_symbol = sum(value in genes for _, value in texts) >= sum(key in genes for key, _ in texts)
    pairs = [(value, key) for key, value in texts] if by_symbol else texts
    return [(gene, symbol) for gene, symbol in pairs if gene in genes]


def names_by_id(tokens: Mapping[Any, Any], pad: Any) -> list[str]:
    """Return the names of a token dictionary in order of id."""
    if pad is None and "<pad>" not in tokens:  # said first: a dictionary of another kind has no ids either
        raise InputError(no_padding(tokens))
    names: dict[int, str] = {}
    ids = {name: _check_id(name, value) for name, value in tokens.items()}
    for name, token in ids.items():
        if not 0 <= token < len(ids) or token in names:
            raise InputError(
                f"token ids must be 0 to {len(ids) - 1} for {len(ids)} names, each once; "
                f"{shown(name)} has {shown(token)}; renumber the token dictionary"
            )
        names[token] = name
    return [names[token] for token in range(len(ids))]


def _check_id(name: Any, value: Any) -> int:
    token = as_integer(value)
    if not isinstance(name, str) or token is None:
        raise InputError(f"a token dictionary maps names to integer ids; it has {shown(name)}: {shown(value)}")
    return token


def checked_names(names: Any) -> tuple[str, ...]:
    """Return the names of a vocabulary, each of them a text."""
    if isinstance(names, str | bytes | Mapping) or not isinstance(names, Iterable):
        raise InputError(
            f"a vocabulary is made from a sequence of names in order of token id; got {shown(names)}; "
            "Vocabulary.from_token_dictionary takes a dictionary of names and ids"
        )
    names = tuple(names)
    for token, name in enumerate(names):
        if not is_text(name):
            raise InputError(
                f"the name of a token must be text of 1 to {MAX_NAME_CHARS} characters; token {token} has {shown(name)}"
            )
    if len(set(names)) != len(names):
        twice = _first_twice(names)
        raise InputError(f"the vocabulary names {shown(twice)} twice; every token needs a name of its own")
    return names


def symbols_by_gene(what: str, table: Any) -> Iterator[tuple[str, str]]:
    """Yield (gene, symbol) of symbols or aliases; an empty symbol is none."""
    if not isinstance(table, Mapping):
        raise InputError(f"{what} map gene names to symbols; got {shown(table)}")
    for gene, given in table.items():
        for symbol in given if what == "aliases" and isinstance(given, list | tuple) else [given]:
            if symbol == "":
                continue
            if not isinstance(gene, str) or not is_text(symbol):
                raise InputError(f"{what} map gene names to symbols; they have {shown(gene)}: {shown(given)}")
            yield gene, symbol


def is_saved_vocabulary(content: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is what ``Vocabulary.save`` writes."""
    return isinstance(content.get("names"), list) and "symbols" in content
