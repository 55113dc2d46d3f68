"""What a masker is given, checked before any kernel runs: shapes, dtypes, devices, and what may be read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from corrmask_fast.errors import InputError
from corrmask_fast.masking.rows import raise_unknown_token


def check_tensor(name: str, given: Any) -> None:
    """Raise InputError unless ``given`` is a tensor."""
    if not isinstance(given, torch.Tensor):
        cure = f"torch.as_tensor({name})" if isinstance(given, np.ndarray | list | tuple) else "a tensor"
        raise InputError(f"{name} must be a torch tensor; got {type(given).__name__}; give {cure}")


def check_batch(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    device: torch.device,
) -> None:
    """Raise InputError unless the batch has a shape, dtype and device that the kernels take."""
    check_tensor("input_ids", input_ids)
    if input_ids.dim() != 2 or input_ids.dtype not in {torch.int32, torch.int64}:
        raise InputError(
            "input_ids must be (rows, columns) of int32 or int64; "
            f"got shape {tuple(input_ids.shape)} of {input_ids.dtype}"
        )
    if input_ids.device != device:
        raise InputError(
            f"input_ids lies on {input_ids.device}, the masker on {device}; use masker.to(input_ids.device)"
        )
    for name, mask in (("attention_mask", attention_mask), ("special_tokens_mask", special_tokens_mask)):
        if mask is not None:
            check_tensor(name, mask)
        if mask is not None and (mask.shape != input_ids.shape or mask.device != device):
            raise InputError(
                f"{name} must have the shape {tuple(input_ids.shape)} and device {device} of input_ids; "
                f"got {tuple(mask.shape)} on {mask.device}"
            )


def check_ragged(indptr: np.ndarray, tokens: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Return (offsets as int64, tokens as int32, longest row)."""
    from corrmask_fast.kernels.ragged import longest_row

    indptr, tokens = np.ascontiguousarray(indptr, np.int64), np.asarray(tokens)
    if tokens.dtype.kind not in "iu" and tokens.size:
        raise InputError(f"tokens must be integers; got {tokens.dtype}")
    longest = longest_row(indptr, tokens.size)
    if longest < 0:
        raise InputError(f"indptr must rise from 0 to the number of tokens, {tokens.size}; got {indptr}")
    if tokens.dtype.itemsize > 4 or tokens.dtype == np.uint32:  # must not wrap around to a token that is known
        lost = (tokens < -(2**31)) | (tokens >= 2**31)
        if lost.any():
            row = int(np.searchsorted(indptr, lost.argmax(), side="right")) - 1
            raise_unknown_token(row, tokens[indptr[row] : indptr[row + 1]], size)
    return indptr, np.ascontiguousarray(tokens, np.int32), longest


def check_row_numbers(
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    n_graphs: int,
    strategy_needs_priorities: bool,
    input_ids: torch.Tensor,
) -> None:
    """Raise InputError unless ``graph_ids`` and ``priorities`` fit the batch, and are there where needed."""
    check_graphs_given(graph_ids is not None, n_graphs)
    if strategy_needs_priorities and priorities is None:
        raise InputError(
            "this masker takes the columns of smallest priority; give priorities, of input_ids' shape, int64"
        )
    shapes = (
        ("graph_ids", graph_ids, input_ids.shape[:1]),
        ("priorities", priorities, input_ids.shape),
    )
    for name, tensor, shape in shapes:
        if tensor is None:
            continue
        check_tensor(name, tensor)
        if tensor.shape != shape or tensor.dtype != torch.int64 or tensor.device != input_ids.device:
            raise InputError(
                f"{name} must be {tuple(shape)} int64 on {input_ids.device}; "
                f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )


def check_graphs_given(given: bool, n_graphs: int) -> None:
    """Raise InputError if rows must name their graph and do not, or name one and cannot."""
    if n_graphs > 1 and not given:
        raise InputError(f"this masker has {n_graphs} graphs; give graph_ids, the number of each row's, (rows,) int64")
    if given and n_graphs == 0:
        raise InputError("graph_ids have no meaning for a masker without graphs; leave them out")


def check_no_priorities(given: dict[str, Any], weights: str) -> None:
    """Raise InputError if priorities are given beside the weights from which they would be drawn."""
    if given.pop("priorities", None) is not None:
        raise InputError(f"{weights} what priorities are drawn from here; leave priorities out")


def check_embedded(embedded: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a model's embeddings if they are (rows, columns, dim) of the masker's dtype, or autocast makes them so."""
    if embedded.shape != shape:
        raise InputError(f"embeddings must turn ids into vectors of dim={shape[-1]}; got {tuple(embedded.shape)}")
    if embedded.dtype != dtype and not torch.is_autocast_enabled(embedded.device.type):
        raise InputError(f"the masker is {dtype}, the embeddings are {embedded.dtype}; use masker.to({embedded.dtype})")
    return embedded
