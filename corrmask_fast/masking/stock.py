"""Today's way of masking Geneformer's cells, kept for side-by-side comparison in the demo and the benches.

A ``datasets`` folder hands out Python lists; an object in a tokenizer's place pads them cell by cell; Hugging Face's
``DataCollatorForLanguageModeling`` masks at random. This is the shape of Geneformer's pretrainer, written so that
it runs with transformers 4.46 to 5 (whose ``SpecialTokensMixin``, on which Geneformer's own class stands, is gone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from corrmask_fast.errors import import_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from corrmask_fast.cells.vocabulary import Vocabulary
    from corrmask_fast.masking.base import Masker

__all__ = ["StockPreCollator", "mask_as_stock", "stock_collator"]


def stock_collator(vocabulary: Vocabulary, *, mlm_probability: float = 0.15) -> Any:
    """Return Hugging Face's collator as Geneformer sets it up.

    Raises
    ------
    MissingExtraError
        Without transformers (extra ``hf``).
    """
    transformers = import_extra("transformers", "hf")
    return transformers.DataCollatorForLanguageModeling(StockPreCollator(vocabulary), mlm_probability=mlm_probability)


def mask_as_stock(input_ids: torch.Tensor, masker: Masker) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (input_ids, labels) as Hugging Face's collator makes them of a padded batch under Geneformer.

    From torch's global generator, with the masker's ``mlm_probability``; 80 % ``<mask>``, 10 % any token of the
    vocabulary, special ones included. ``input_ids`` is written to.
    """
    vocabulary = masker.vocabulary
    collator = stock_collator(vocabulary, mlm_probability=masker.current_rates()[0][1])
    special = (input_ids == vocabulary.pad_token_id) | (input_ids == vocabulary.mask_token_id)
    return collator.torch_mask_tokens(input_ids, special_tokens_mask=special)


class StockPreCollator:
    """Stands where Hugging Face's collator expects a tokenizer, and pads lists cell by cell, as Geneformer's does."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.batch_encoding = import_extra("transformers", "hf").BatchEncoding
        self.vocabulary = vocabulary
        self.pad_token_id, mask = vocabulary.pad_token_id, vocabulary.require_mask_token()
        self.pad_token, self.mask_token = vocabulary.names[self.pad_token_id], vocabulary.names[mask]
        self._ids = {self.pad_token: self.pad_token_id, self.mask_token: mask}
        # The stock path knows these two alone, whatever else the dictionary holds.
        self.all_special_ids = [self.pad_token_id, mask]

    def __len__(self) -> int:
        return self.vocabulary.size

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a special token."""
        return self._ids[token]

    def get_special_tokens_mask(self, token_ids: Sequence[int], already_has_special_tokens: bool = True) -> list[int]:  # noqa: ARG002
        """Return 1 where a token is special."""
        special = self.all_special_ids
        return [1 if token in special else 0 for token in token_ids]

    def pad(
        self, examples: Sequence[dict[str, Any]], *, return_tensors: str = "pt", pad_to_multiple_of: int | None = None
    ) -> Any:
        """Pad a list of cells on the right, one list after the other, then turn the lists into tensors."""
        longest = max(len(example["input_ids"]) for example in examples)
        if pad_to_multiple_of is not None:
            longest = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
        batch: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for example in examples:
            missing = longest - len(example["input_ids"])
            batch["input_ids"].append(example["input_ids"] + [self.pad_token_id] * missing)
            batch["attention_mask"].append([1] * len(example["input_ids"]) + [0] * missing)
        return self.batch_encoding(batch, tensor_type=return_tensors)
