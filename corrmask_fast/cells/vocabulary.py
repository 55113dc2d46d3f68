"""Genes and special tokens: which token id is which gene."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from corrmask_fast.cells.dictionaries import (
    checked_names,
    is_saved_vocabulary,
    names_by_id,
    pairs_of_symbols,
    parse_json,
    read_dictionary,
    symbols_by_gene,
)
from corrmask_fast.cells.gene_names import UnknownGeneError
from corrmask_fast.cells.special_tokens import in_angles, looks_special, no_padding, roles_of
from corrmask_fast.errors import InputError, as_integer, naming, reason, shown
from corrmask_fast.files import atomic_file
from corrmask_fast.suggestions import other_cases

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Vocabulary"]

SPECIAL_TOKENS = ("<pad>", "<mask>", "<cls>", "<eos>")
DICTIONARY_FILE = "token_dictionary.json"  # beside the weights of a model that this package wrote


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token ids of genes and special tokens.

    Ids run from 0 to ``size - 1`` without a gap. The ids of genes are one range, ``gene_range``. All arguments are
    attributes, too; ``pad``, ``mask`` and ``special`` are names there.

    Parameters
    ----------
    names : sequence of str
        The name of each token, in order of id: Ensembl ids or symbols for genes.
    symbols : mapping, optional
        Gene name → the symbol that the gene is shown by. Genes that are not in the vocabulary are ignored.
    aliases : mapping, optional
        Gene name → further symbols that find the gene.
    pad, mask : str or int, optional
        The tokens of padding and of masked genes, by name or id. None: ``<pad>``, and ``<mask>`` if there is one. A
        vocabulary without a mask token is for models whose values are masked while genes stay
        (:class:`~corrmask_fast.ValueReplacement`).
    special : iterable of str or int, optional
        Further special tokens, by name or id, such as ``("[CLS]", "[SEP]")``. Names in angle brackets are special
        anyway. Special tokens are never masked.

    Raises
    ------
    InputError
        If there is no padding token, a name stands twice, is empty or no text, ``pad``, ``mask`` or ``special`` is no
        token, or a special token lies between the genes.

    Warns
    -----
    UserWarning
        If names in brackets, such as ``[CLS]``, count as genes.

    Notes
    -----
    *How a gene is found* (:attr:`~corrmask_fast.Vocabulary.tokens_by_name`): by its name, by the symbol that it is
    shown by, or by an alias. Names come first: a symbol that is another gene's name finds that other gene. A symbol
    that several genes share finds, of those that are shown by it, the one with the lowest id; if there is none, of
    those that have it as an alias.

    *What stands around a cell in training*: ``<cls>`` before and ``<eos>`` after it, if tokens of these names are there
    (Geneformer V2). Other special tokens, such as ``[CLS]``, are not added.

    Examples
    --------
    >>> from corrmask_fast import Vocabulary
    >>> vocabulary = Vocabulary(("<pad>", "<mask>", "RPL3", "RPS6"))
    >>> vocabulary.size, vocabulary.gene_range, vocabulary.id_of("RPS6")
    (4, (2, 4), 3)
    >>> other = Vocabulary(("[PAD]", "[MASK]", "[CLS]", "A", "B"), pad="[PAD]", mask="[MASK]", special=("[CLS]",))
    >>> other.special_token_ids, other.mask_token_id
    ((0, 1, 2), 1)
    """

    names: tuple[str, ...]
    symbols: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)
    pad: str | int | None = field(default=None, kw_only=True)
    mask: str | int | None = field(default=None, kw_only=True)
    special: Iterable[str | int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._set("names", checked_names(self.names))
        self._set_roles()
        self._check_genes()
        genes = self._ids.keys() - {self.names[token] for token in self.special_token_ids}
        symbols = symbols_by_gene("symbols", self.symbols)
        self._set("symbols", {gene: symbol for gene, symbol in symbols if gene in genes})
        aliases: dict[str, list[str]] = {}
        for gene, symbol in symbols_by_gene("aliases", self.aliases):
            if gene in genes and symbol != self.symbols.get(gene) and symbol not in aliases.setdefault(gene, []):
                aliases[gene].append(symbol)
        self._set("aliases", {gene: tuple(more) for gene, more in aliases.items() if more})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _set_roles(self) -> None:
        """Put names in place of ids, and the usual names where none are given."""
        pad, mask = self._token("pad", self.pad, "<pad>"), self._token("mask", self.mask, "<mask>")
        if pad is None:
            raise InputError(no_padding(self.names))
        if pad == mask:
            raise InputError(f"pad and mask are both {shown(pad)}; padding needs a token of its own")
        given: Any = () if self.special is None else self.special
        given = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else given
        more = {self._token("special", token) for token in given} - {pad, mask}
        self._set("pad", pad)
        self._set("mask", mask)
        self._set("special", tuple(name for name in self.names if name in more and not in_angles(name)))

    def _token(self, role: str, given: Any, usual: str | None = None) -> str | None:
        """Return the name of the token that is given for a role by name or id."""
        if given is None and usual is not None:
            return usual if usual in self._ids else None
        token = self._ids.get(given) if isinstance(given, str) else as_integer(given)
        if token is None or not 0 <= token < self.size:
            raise InputError(
                f"{role} must be the name of a token, or an id from 0 to {self.size - 1}; got {shown(given)}, "
                "which is none of this vocabulary"
            )
        return self.names[token]

    def _check_genes(self) -> None:
        lo, hi = self.gene_range
        if lo == hi:
            raise InputError("the vocabulary has no genes, only special tokens")
        inside = next((token for token in self.special_token_ids if lo < token < hi), None)
        if inside is not None:
            raise InputError(
                f"gene tokens must be contiguous, but the special token {shown(self.names[inside])} (id {inside}) lies "
                f"between the genes' ids {lo} and {hi - 1}; renumber the token dictionary"
            )
        suspects = [name for name in self.names[lo:hi] if looks_special(name)]
        if suspects:
            warnings.warn(
                f"names in brackets count as genes, which are masked; for special tokens give {roles_of(suspects)}",
                stacklevel=4,
            )

    @classmethod
    def from_token_dictionary(
        cls,
        tokens: str | os.PathLike[str] | Mapping[str, int],
        symbols: Any = None,
        *,
        pad: str | int | None = None,
        mask: str | int | None = None,
        special: Iterable[str | int] | None = None,
    ) -> Self:
        """Return the vocabulary of a token dictionary, such as Geneformer's or scGPT's.

        Parameters
        ----------
        tokens : mapping or path
            Name → id: a mapping, or the path of a ``.json`` or ``.pkl`` file. From a pickle only dictionaries, strings
            and numbers are read, so no file can run code.
        symbols : mapping or path, optional
            Symbol → gene name, as in Geneformer's ``gene_name_id_dict``; the other direction is recognised too. Of
            several symbols for one gene the first is shown, and all find it.
        pad, mask, special
            The special tokens, as for :class:`~corrmask_fast.Vocabulary`.

        Returns
        -------
        Vocabulary
            The genes and special tokens of the dictionary.

        Raises
        ------
        InputError
            If the file holds anything but a dictionary of names and ids, ids repeat or leave gaps, special tokens lie
            among the genes, there is no padding token, or no symbol is of a gene here.

        Examples
        --------
        >>> from corrmask_fast import Vocabulary
        >>> tokens = {"<pad>": 0, "<mask>": 1, "ENSG00000100316": 2, "ENSG00000137154": 3}
        >>> vocabulary = Vocabulary.from_token_dictionary(tokens, {"RPL3": "ENSG00000100316"})
        >>> vocabulary.id_of("RPL3"), vocabulary.name_of(2)
        (2, 'RPL3')
        """
        content = read_dictionary(tokens)
        with naming(tokens):
            if is_saved_vocabulary(content):
                raise InputError(
                    "this is a saved vocabulary, with symbols and special tokens of its own; read it with "
                    "Vocabulary.load(path), without symbols, pad, mask and special"
                )
            names = names_by_id(content, pad)
        by_gene: dict[str, list[str]] = {}
        for gene, symbol in [] if symbols is None else pairs_of_symbols(read_dictionary(symbols), set(names)):
            by_gene.setdefault(gene, []).append(symbol)
        if symbols is not None and not by_gene:
            source = symbols if isinstance(symbols, str | os.PathLike) else "the symbols given"
            raise InputError(
                f"no symbol of {source} names a gene of the token dictionary; "
                "give the gene_name_id_dict that belongs to it, or leave the symbols out"
            )
        first = {gene: symbols[0] for gene, symbols in by_gene.items()}
        with naming(tokens):
            return cls(tuple(names), first, aliases=by_gene, pad=pad, mask=mask, special=special)

    def with_symbols(self, symbols: Mapping[str, str]) -> Self:
        """Return the vocabulary with other symbols for its genes; the symbols before become aliases.

        Parameters
        ----------
        symbols : mapping
            Gene name → symbol, such as those of an AnnData file. Genes that are not in the vocabulary are ignored, and
            so are symbols that are empty or the gene's own name. Genes that are not named keep their symbol.

        Returns
        -------
        Vocabulary
            A copy with the same ids.

        Raises
        ------
        InputError
            If ``symbols`` does not map gene names to symbols.

        Examples
        --------
        >>> from corrmask_fast import Vocabulary
        >>> old = Vocabulary(("<pad>", "<mask>", "ENSG00000127526"), {"ENSG00000127526": "SLC35E1"})
        >>> new = old.with_symbols({"ENSG00000127526": "MGC2494"})
        >>> new.name_of(2), new.id_of("MGC2494"), new.id_of("SLC35E1")
        ('MGC2494', 2, 2)
        """
        lo, hi = self.gene_range
        shown_now, aliases = dict(self.symbols), dict(self.aliases)
        for gene, symbol in symbols_by_gene("symbols", symbols):
            before = shown_now.get(gene)
            if symbol in {gene, before} or not lo <= self._ids.get(gene, -1) < hi:
                continue
            shown_now[gene] = symbol
            others = (*([] if before is None else [before]), *aliases.get(gene, ()))
            aliases[gene] = tuple(dict.fromkeys(other for other in others if other != symbol))
        vocabulary = copy.copy(self)  # names and roles were looked at when this one was made
        found = {"symbols": shown_now, "aliases": {gene: more for gene, more in aliases.items() if more}}
        vocabulary.__dict__.update(found)
        vocabulary.__dict__.pop("tokens_by_name", None)
        return vocabulary

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: token for token, name in enumerate(self.names)}

    @cached_property
    def tokens_by_name(self) -> dict[str, int]:
        """Token id of each gene, by each name, symbol and alias that finds it; see the notes of the class."""
        lo, hi = self.gene_range
        found = {self.names[token]: token for token in range(lo, hi)}
        for symbol, token in self._symbols_in_order():
            if symbol not in self._ids:
                found.setdefault(symbol, token)
        return found

    @property
    def ambiguous_symbols(self) -> frozenset[str]:
        """Symbols and aliases that several genes share; each finds one of these genes."""
        owners = Counter(symbol for symbol, _ in self._symbols_in_order() if symbol not in self._ids)
        return frozenset(symbol for symbol, count in owners.items() if count > 1)

    def _symbols_in_order(self) -> Iterator[tuple[str, int]]:
        """Yield (symbol, token): first those that genes are shown by, then aliases, each by rising id."""
        for gene, token in self._ids.items():
            if gene in self.symbols:
                yield self.symbols[gene], token
        for gene, token in self._ids.items():
            for symbol in self.aliases.get(gene, ()):
                yield symbol, token

    @property
    def size(self) -> int:
        """Number of token ids, V."""
        return len(self.names)

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self._ids[self.pad]  # type: ignore[index]

    @property
    def mask_token_id(self) -> int | None:
        """Id of the token that replaces masked genes; None if there is none."""
        return None if self.mask is None else self._ids[self.mask]  # type: ignore[index]

    def require_mask_token(self) -> int:
        """Return the id of the mask token; raise an error if there is none.

        Returns
        -------
        int
            The id of the mask token.

        Raises
        ------
        InputError
            If the vocabulary has no mask token.
        """
        if self.mask_token_id is None:
            raise InputError(
                "masked genes become a mask token, and this vocabulary has none: it has no '<mask>'; add one to the "
                "token dictionary, name another with mask= (--mask-token), or mask values and leave genes in view "
                "(ValueReplacement)"
            )
        return self.mask_token_id

    @property
    def cls_token_id(self) -> int | None:
        """Id of ``<cls>``; None if there is none (V1)."""
        return self._ids.get("<cls>")

    @property
    def eos_token_id(self) -> int | None:
        """Id of ``<eos>``; None if there is none (V1)."""
        return self._ids.get("<eos>")

    @property
    def n_surrounding(self) -> int:
        """Number of tokens of a cell in training besides its genes, ``<cls>`` before and ``<eos>`` after; 0 with V1."""
        return sum(token is not None for token in (self.cls_token_id, self.eos_token_id))

    @cached_property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, ascending; they are never masked."""
        named = {self.pad, self.mask, *self.special}  # type: ignore[misc]
        return tuple(token for token, name in enumerate(self.names) if in_angles(name) or name in named)

    @cached_property
    def gene_range(self) -> tuple[int, int]:
        """The range (lo, hi) of the ids of genes, lo <= id < hi."""
        special = set(self.special_token_ids)
        lo = next((token for token in range(self.size) if token not in special), 0)
        hi = next((token + 1 for token in reversed(range(self.size)) if token not in special), 0)
        return lo, hi

    @property
    def max_length(self) -> int:
        """Most tokens of a cell, special tokens included; 2048 (V1), or 4096 (V2, which has ``<cls>``)."""
        return 2048 if self.cls_token_id is None else 4096

    @property
    def token_dtype(self) -> np.dtype[Any]:
        """The dtype that a corpus stores tokens in, uint16 if it holds every id, else int32."""
        return np.dtype(np.uint16 if self.size <= 65536 else np.int32)

    @cached_property
    def _roles(self) -> dict[str, Any]:
        """The special tokens that are not known by their names alone; {} for Geneformer's."""
        usual = self.pad == "<pad>" and self.mask == ("<mask>" if "<mask>" in self._ids else None)
        return {} if usual and not self.special else {"pad": self.pad, "mask": self.mask, "special": self.special}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all names in order of id, and of special tokens where they are not Geneformer's.

        It is equal for two vocabularies if each id means the same in both.
        """
        content = [self.names, self._roles] if self._roles else self.names
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def id_of(self, gene: str | int, *, any_case: bool = False) -> int:
        """Return the token id of a gene.

        Parameters
        ----------
        gene : str or int
            Name, symbol, alias or token id.
        any_case : bool
            If no gene has this name or symbol, find the one that differs only in upper and lower case.

        Returns
        -------
        int
            The token id.

        Raises
        ------
        InputError
            If there is no such gene; the message names those of similar spelling.

        Examples
        --------
        >>> from corrmask_fast import Vocabulary
        >>> vocabulary = Vocabulary(("<pad>", "<mask>", "CD3D", "CD3E"))
        >>> vocabulary.id_of("cd3d", any_case=True)
        2
        >>> vocabulary.id_of("CD3")
        Traceback (most recent call last):
        corrmask_fast.cells.gene_names.UnknownGeneError: no gene 'CD3' in this vocabulary of 2 genes (did you mean
        'CD3D' or 'CD3E'?); give a token id from 2 to 3, or a name such as 'CD3D'
        """
        token = self.tokens_by_name.get(gene) if isinstance(gene, str) else as_integer(gene)
        if token is None and any_case and isinstance(gene, str):
            found = {self.tokens_by_name[name] for name in other_cases(gene, self.tokens_by_name)}
            token = found.pop() if len(found) == 1 else None
        lo, hi = self.gene_range
        if token is None or not lo <= token < hi:
            raise UnknownGeneError(gene, self.tokens_by_name, (lo, hi), self.names[lo])
        return token

    def name_of(self, token: int) -> str:
        """Return the symbol of a token; its name if it has no symbol.

        Parameters
        ----------
        token : int
            Token id, from 0 to ``size - 1``.

        Returns
        -------
        str
            Symbol or name.
        """
        name = self.names[token]
        return self.symbols.get(name, name)

    def check_same(self, other: Vocabulary, mine: str, theirs: str) -> None:
        """Check that another vocabulary gives every id the same meaning.

        Parameters
        ----------
        other : Vocabulary
            The other one.
        mine, theirs : str
            What the error calls this vocabulary and the other, such as ``"the corpus"`` and ``"the graph"``.

        Raises
        ------
        InputError
            If an id differs; the message names the first one.
        """
        if self.fingerprint == other.fingerprint:
            return
        differ = next((t for t, (a, b) in enumerate(zip(self.names, other.names, strict=False)) if a != b), None)
        if differ is not None:
            a, b = shown(self.names[differ]), shown(other.names[differ])
            where = f"token {differ} is {a} in one and {b} in the other"
        elif self.size != other.size:
            where = f"{self.size} against {other.size} tokens"
        else:
            where = f"special tokens: {self._specials_shown()} against {other._specials_shown()}"
        raise InputError(
            f"{mine} and {theirs} have different vocabularies ({where}); "
            "tokenise all cells with the same token dictionary, and build the graph from them"
        )

    def _specials_shown(self) -> str:
        mask = "none" if self.mask is None else shown(self.mask)
        return f"pad {shown(self.pad)}, mask {mask}, all {shown(self.special_token_ids)}"

    def to_json(self) -> str:
        """Return the vocabulary as JSON text.

        Returns
        -------
        str
            An object with ``names`` in order of id and ``symbols``; ``aliases`` and ``roles`` (special tokens) if there
            are any.
        """
        content = {"names": self.names, "symbols": self.symbols, "aliases": self.aliases, "roles": self._roles}
        return json.dumps({key: value for key, value in content.items() if value or key in {"names", "symbols"}})

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any]) -> Self:
        """Return the vocabulary that :meth:`~corrmask_fast.Vocabulary.to_json` wrote.

        Parameters
        ----------
        text : str, bytes or mapping
            The JSON text, or the object that it holds.

        Returns
        -------
        Vocabulary
            The same names, symbols, aliases and special tokens.

        Raises
        ------
        InputError
            If the text is no vocabulary.
        """
        try:
            content = text if isinstance(text, Mapping) else parse_json(text)
            names, symbols = content["names"], content["symbols"]
            aliases, roles = content.get("aliases", {}), content.get("roles", {})
            if not (isinstance(names, list) and all(isinstance(table, dict) for table in (symbols, aliases, roles))):
                raise TypeError("names must be a list, and symbols, aliases and roles objects")  # noqa: TRY301
            return cls(tuple(names), symbols, aliases=aliases, **roles)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"not a vocabulary written by this project: {reason(error)}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as a JSON file.

        Parameters
        ----------
        path : path
            File to write. A file that is there is replaced.

        Raises
        ------
        InputError
            If the path is a folder, or its parent does not exist.
        """
        with atomic_file(path) as temporary:
            temporary.write_text(self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a vocabulary that :meth:`~corrmask_fast.Vocabulary.save` wrote, or a token dictionary.

        A token dictionary must have Geneformer's special tokens; for others see
        :meth:`~corrmask_fast.Vocabulary.from_token_dictionary`.

        Parameters
        ----------
        path : path
            A ``.json`` or ``.pkl`` file.

        Returns
        -------
        Vocabulary
            The vocabulary.

        Raises
        ------
        InputError
            If there is no such file, or it holds neither of these.
        """
        path = Path(path)
        content = read_dictionary(path)
        with naming(path):
            if is_saved_vocabulary(content):
                return cls.from_json(content)
            return cls.from_token_dictionary(content)

    def __repr__(self) -> str:
        lo, hi = self.gene_range
        ids = self.special_token_ids
        specials = " ".join(self.names[token][:40] for token in ids[:10]) + (" …" if len(ids) > 10 else "")
        return f"Vocabulary({hi - lo} genes, ids {lo} to {hi - 1}; {specials})"
