"""Masking by a function of the user's own: it proposes groups of genes, or weighs them; the rest is as everywhere."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from corrmask_fast.buffers import empty
from corrmask_fast.errors import InputError, as_integer, shown
from corrmask_fast.kernels.layout import COUNTED, FUNCTION, NOT_PROPOSED
from corrmask_fast.masking.base import MaskedBatch, Masker, RateLike
from corrmask_fast.masking.engine import rows as on_cpu
from corrmask_fast.masking.engine.checks import check_batch, check_no_priorities, raise_unknown_token
from corrmask_fast.masking.engine.draws import Draws, draws_of_tensors
from corrmask_fast.masking.engine.tables import no_table
from corrmask_fast.threads import run_ranges

if TYPE_CHECKING:
    from collections.abc import Callable

    from corrmask_fast.cells.vocabulary import Vocabulary

    # (tokens, words) -> (indptr, columns), or weights
    Propose = Callable[[np.ndarray, np.ndarray], Any]

__all__ = ["FunctionMasker"]

MIN_TOKENS_OF_RANGE = 16_384
ANSWERS = "propose must return groups, (indptr, columns), or a weight for each token"


class FunctionMasker(Masker):
    r"""Mask what a function of your own proposes; quota, top-up, replacement and labels are those of every strategy.

    Parameters
    ----------
    vocabulary
        The :class:`~corrmask_fast.Vocabulary`: which id is which gene.
    propose
        ``propose(tokens, words)``, called for each row that has maskable tokens. It gets these n tokens, (n,) int64 in
        the order of the row, and their random words, (n, 4) uint32. It returns one of

        - ``(indptr, columns)``, integers: groups in the order in which they are proposed. Group g is
          ``columns[indptr[g]:indptr[g + 1]]``. Columns are places in ``tokens``. One that was proposed before does
          not count again; there may be any number of groups.
        - (n,) weights, finite and >= 0: single columns are drawn by them, without replacement. A weight of 0 is never
          drawn.

        The answer must depend on these two arrays alone, with all randomness from ``words``, which no other step uses.
        Then a cell's mask is the same in any batch, worker and rank. A function that Numba compiled (``@njit``) is
        called without Python in between, by several threads.
    name
        What tables call the strategy. None: the function's own name.
    version
        A number or text. Give another one when the function masks differently than before: a run resumes only with the
        same name and version.
    mlm_probability
        p, in (0, 1): share of a row's n maskable tokens that is masked, exactly floor(n · p). A number, a range or a
        schedule.
    structural_ratio
        λ, in [0, 1]: share of the masked tokens that the function chooses, if it proposes enough; the rest is random.
        A number, a range or a schedule.
    mask_replace_prob, random_replace_prob, replace, seed
        As for :class:`~corrmask_fast.CorrMasker`.

    Attributes
    ----------
    propose
        The function.
    name
        What tables call the strategy.
    version
        As given.

    Raises
    ------
    InputError
        If a parameter is out of range. When rows are masked: if the function fails or returns anything else; the
        message names the row.

    Notes
    -----
    The function runs on the CPU. For a batch on a device, the tokens are copied to the host and the answer back, and
    the device waits: masking in the collator's workers is faster. ``torch.compile`` and CUDA graphs cannot contain the
    function, and are refused. Tokens outside the vocabulary always raise. For worker processes that are spawned, the
    function must be picklable: a function of a module, not a lambda.

    Examples
    --------
    A gene at random, then the whole pathway that holds it, of a ``.gmt`` file such as Reactome's:

    >>> import numpy as np
    >>> import torch
    >>> from corrmask_fast import FunctionMasker, Vocabulary
    >>> genes = Vocabulary(("<pad>", "<mask>", *"ABCDEFGH"))
    >>> lines = ["repair\tlink\tA\tC\tE", "signalling\tlink\tB\tG\tH"]  # open("ReactomePathways.gmt")
    >>> names = [line.rstrip().split("\t")[2:] for line in lines]
    >>> pathways = [[genes.tokens_by_name[name] for name in each if name in genes.tokens_by_name] for each in names]
    >>> pathway_of = {gene: pathway for pathway in pathways for gene in pathway}
    >>> def propose(tokens, words):
    ...     first = words[:, 0].argsort(kind="stable")
    ...     pathways = [pathway_of[token] for token in tokens[first].tolist() if token in pathway_of]
    ...     groups = [np.flatnonzero(np.isin(tokens, pathway)) for pathway in pathways]
    ...     return np.cumsum([0, *map(len, groups)]), np.concatenate(groups)
    >>> masker = FunctionMasker(genes, propose, name="pathways", mlm_probability=0.4)
    >>> masker(torch.arange(2, 10)[None], epoch=0).masked_positions  # A, C and E
    tensor([[0, 2, 4]])
    """

    mask_source = "function"
    on_host = True
    own_parameters = ("name", "version")

    def __init__(
        self,
        vocabulary: Vocabulary,
        propose: Propose,
        *,
        name: str | None = None,
        version: str | int = 0,
        mlm_probability: RateLike = 0.15,
        structural_ratio: RateLike = 1.0,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        replace: str = "token",
        seed: int = 0,
    ) -> None:
        if not callable(propose):
            raise InputError(f"propose must be a function of (tokens, words); got {shown(propose)}")
        if name is None:
            inner = propose.func if isinstance(propose, partial) else propose
            name = getattr(inner, "__name__", type(inner).__name__)
        if not isinstance(name, str) or not name:
            raise InputError(f"name must be a text that is not empty; got {shown(name)}")
        if not isinstance(version, str) and as_integer(version) is None:
            raise InputError(f"version must be a number or a text; got {shown(version)}")
        told = f"{vocabulary.fingerprint}\n{name}\n{version}"
        super().__init__(
            vocabulary,
            FUNCTION,
            no_table(vocabulary)._replace(fingerprint=hashlib.sha256(told.encode()).hexdigest()),
            mlm_probability=mlm_probability,
            structural_ratio=structural_ratio,
            mask_replace_prob=mask_replace_prob,
            random_replace_prob=random_replace_prob,
            replace=replace,
            seed=seed,
            validate=None,
        )
        self.propose, self.name, self.version, self.label = propose, name, version, name

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        special_tokens_mask: torch.Tensor | None = None,
        *,
        draw_ids: torch.Tensor | None = None,
        epoch: int | torch.Tensor | None = None,
        **more: Any,
    ) -> MaskedBatch:
        """Mask a padded batch. Call the masker itself: ``masker(input_ids, …)``.

        Parameters
        ----------
        input_ids, attention_mask, special_tokens_mask, draw_ids, epoch
            As for every masker: see :meth:`corrmask_fast.Masker.forward`.
        **more
            ``marks_only``, likewise. ``priorities`` cannot be given: the function makes them.

        Returns
        -------
        MaskedBatch
            Masked ids, labels and masked columns: see :class:`~corrmask_fast.MaskedBatch`.

        Raises
        ------
        InputError
            As for every masker; and under ``torch.compile`` or in a CUDA graph, if ``priorities`` are given, or if the
            function fails or returns what it must not.
        """
        capturing = input_ids.is_cuda and torch.cuda.is_current_stream_capturing()
        if torch.compiler.is_compiling() or type(input_ids) is not torch.Tensor or capturing:
            raise InputError(
                "FunctionMasker runs a Python function on the CPU, which neither torch.compile nor a CUDA graph can "
                "hold; mask before the compiled part, in the collator"
            )
        check_no_priorities(more, "the function's answer is")
        device = self.seed_bits.device
        check_batch(input_ids, attention_mask, special_tokens_mask, device)
        values, mode, offset = draws_of_tensors(input_ids.shape[0], draw_ids, epoch, self.draw_counter, device)
        draws, priorities = self._propose(
            on_cpu.row_starts(*input_ids.shape),
            np.ascontiguousarray(input_ids.cpu().numpy(), np.int64).reshape(-1),
            Draws(values.cpu().numpy(), mode, offset),
            attention_mask=on_cpu.as_bytes(None if attention_mask is None else attention_mask.cpu()),
            special_tokens_mask=on_cpu.as_bytes(None if special_tokens_mask is None else special_tokens_mask.cpu()),
        )
        more |= {"draw_ids": torch.from_numpy(draws.values).to(device)}
        more |= {"priorities": torch.from_numpy(priorities).reshape(input_ids.shape).to(device)}
        masked = super().forward(input_ids, attention_mask, special_tokens_mask, **more)
        if mode == COUNTED:
            self.draw_counter.add_(input_ids.shape[0])
        return masked

    def _propose(
        self,
        row_ptr: np.ndarray,
        tokens: np.ndarray,
        draws: Draws,
        largest_ratio: float = 1.0,
        *,
        attention_mask: np.ndarray = on_cpu.NOTHING,
        special_tokens_mask: np.ndarray = on_cpu.NOTHING,
        **_: Any,
    ) -> tuple[Draws, np.ndarray]:
        """Call the function for each row; return the rows' draws, and the priorities of all columns.

        Where λ is 0, the function would be called for nothing.
        """
        if largest_ratio == 0:
            return draws, on_cpu.NO_NUMBERS
        rows, longest = row_ptr.size - 1, int(np.diff(row_ptr).max(initial=0))
        draw_ids, priorities = np.zeros(rows, np.int64), empty((tokens.size,))
        given = (
            *(row_ptr, tokens, attention_mask, special_tokens_mask, draws.values, draws.mode, draws.offset),
            *(np.uint64(self.seed), np.array(self._settings, np.int64)),
        )
        bad, failed = 0, None
        if hasattr(self.propose, "py_func"):
            try:
                bad = self._by_numba(rows, longest, given, draw_ids, priorities)
            except Exception as error:  # noqa: BLE001 (the function's own; which row it was, the loop below tells)
                failed = error
        if bad >= 0:
            self._by_python(bad, rows, longest, given, draw_ids, priorities)
            if failed is not None:
                raise InputError(f"{self.name} failed in Numba: {type(failed).__name__}: {failed}") from failed
        return Draws(draw_ids, 0), priorities

    def _by_numba(self, rows: int, longest: int, given: tuple[Any, ...], *out: np.ndarray) -> int:
        """Return the first row whose answer is not sound, or −1."""
        from corrmask_fast.kernels.function import rows_by

        by = rows_by(self.propose)
        smallest = -(-MIN_TOKENS_OF_RANGE // max(longest, 1))
        found = run_ranges(lambda begin, end: by(begin, end, *given, longest, *out), rows, smallest)
        return min((row for row in found if row >= 0), default=-1)

    def _by_python(
        self, begin: int, rows: int, longest: int, given: tuple[Any, ...], draw_ids: np.ndarray, priorities: np.ndarray
    ) -> None:
        from corrmask_fast.kernels.function import make_room, open_row, place_groups, place_weights

        row_ptr, tokens, seed = given[0], given[1], given[-2]
        room = make_room(longest)
        for row in range(begin, rows):
            here = slice(row_ptr[row], row_ptr[row + 1])
            n, first, draw = open_row(row, *given, room)
            if n < 0:
                raise_unknown_token(row, tokens[here], self.vocabulary.size)
            draw_ids[row : row + 1].view(np.uint64)[0] = draw
            ranks = priorities[here]
            ranks[:] = NOT_PROPOSED
            if n == 0:
                continue
            try:
                answer = self.propose(room[6][:n].copy(), room[7][:n].copy())
            except Exception as error:
                raise InputError(f"{self.name} failed in row {row}: {type(error).__name__}: {error}") from error
            columns = room[5]
            if isinstance(answer, tuple):
                place_groups(*self._groups(answer, row, n), n, columns, ranks[first:])
            else:
                weights = self._weights(answer, row, columns[:n] + first)
                place_weights(weights, n, columns, ranks[first:], np.uint64(draw), seed, room)

    def _groups(self, answer: tuple[Any, ...], row: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what the function returned as two sound int64 arrays."""
        arrays = [_as_array(each) for each in answer]
        if len(arrays) != 2 or any(array is None or (array.dtype.kind == "f" and array.size) for array in arrays):
            raise InputError(f"{ANSWERS}, whole numbers; {self.name} returned {shown(answer)} for row {row}")
        indptr, places = (array.astype(np.int64) for array in arrays if array is not None)
        if indptr.size == 0 or indptr[0] != 0 or indptr[-1] != places.size or (np.diff(indptr) < 0).any():
            raise InputError(
                f"indptr must rise from 0 to the number of columns, {places.size}; {self.name} returned "
                f"{shown(indptr.tolist())} for row {row}"
            )
        wrong = places[(places < 0) | (places >= n)]
        if wrong.size:
            raise InputError(
                f"columns must be places in tokens, [0, {n}); {self.name} returned {wrong[0]} for row {row}; give "
                "places, not tokens"
            )
        return indptr, places

    def _weights(self, answer: Any, row: int, columns: np.ndarray) -> np.ndarray:
        """Return what the function returned as sound float64 weights."""
        weights = _as_array(answer)
        if weights is None or weights.size != columns.size:
            raise InputError(f"{ANSWERS}, {columns.size} of them; {self.name} returned {shown(answer)} for row {row}")
        weights = weights.astype(np.float64)
        wrong = np.flatnonzero(~((weights >= 0) & (weights < np.inf)))
        if wrong.size:
            raise InputError(
                f"weights must be finite and >= 0; {self.name} returned {weights[wrong[0]]} for row {row}, column "
                f"{columns[wrong[0]]}; give 0 to what shall not be drawn"
            )
        return weights

    def extra_repr(self) -> str:
        """Return the parameters for ``repr``."""
        return f"{super().extra_repr()}, name={self.name!r}, version={self.version!r}"


def _as_array(given: Any) -> np.ndarray | None:
    """Return one-dimensional real numbers as an array, or None if it is none."""
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array if array.ndim == 1 and array.dtype.kind in "iuf" else None
