"""A gene that a vocabulary does not have: the error, with the names of similar spelling."""

from __future__ import annotations

from functools import cached_property

from corrmask_fast.errors import InputError, shown
from corrmask_fast.suggestions import did_you_mean

__all__ = ["UnknownGeneError"]


class UnknownGeneError(InputError):
    """``UnknownGeneError(gene, names, (lo, hi), example)``: a gene that no name finds, in ids lo <= id < hi.

    Similar names are looked for when the message is read: many such errors are caught, and never shown.
    """

    @cached_property
    def _message(self) -> str:
        gene, names, (lo, hi), example = self.args
        return (
            f"no gene {shown(gene)} in this vocabulary of {hi - lo} genes{did_you_mean(gene, names)}; "
            f"give a token id from {lo} to {hi - 1}, or a name such as {shown(example)}"
        )

    def __str__(self) -> str:
        return self._message
