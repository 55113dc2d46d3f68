"""Every check of a batch before a kernel runs: shapes, dtypes, devices and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from corrmask_fast.errors import InputError

INTEGERS = frozenset({torch.int32, torch.int64})


# ------------------------------------------------------------------------------------------------ tensors, any device


def check_tensor(name: str, given: Any) -> None:
    """Raise InputError unless ``given`` is a tensor."""
    if not isinstance(given, torch.Tensor):
        fix = f"torch.as_tensor({name})" if isinstance(given, np.ndarray | list | tuple) else "a tensor"
        raise InputError(f"{name} must be a torch tensor; got {type(given).__name__}; give {fix}")


def check_batch(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    special_tokens_mask: torch.Tensor | None,
    device: torch.device,
) -> None:
    """Raise InputError unless the batch has a shape, dtype and device that the kernels take."""
    check_tensor("input_ids", input_ids)
    if input_ids.dim() != 2 or input_ids.dtype not in INTEGERS:
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


def check_row_numbers(
    graph_ids: torch.Tensor | None,
    priorities: torch.Tensor | None,
    n_graphs: int,
    needs_priorities: bool,
    input_ids: torch.Tensor,
) -> None:
    """Raise InputError unless ``graph_ids`` and ``priorities`` fit the batch, and are there where needed."""
    check_graphs_given(graph_ids is not None, n_graphs)
    if needs_priorities and priorities is None:
        raise InputError(
            "this masker takes the columns of smallest priority; give priorities, of input_ids' shape, int64"
        )
    if graph_ids is not None:
        check_int64("graph_ids", graph_ids, input_ids.shape[:1], input_ids.device)
    if priorities is not None:
        check_int64("priorities", priorities, input_ids.shape, input_ids.device)


def check_graphs_given(given: bool, n_graphs: int) -> None:
    """Raise InputError if rows must name their graph and do not, or name one and cannot."""
    if n_graphs > 1 and not given:
        raise InputError(f"this masker has {n_graphs} graphs; give graph_ids, the number of each row's, (rows,) int64")
    if given and n_graphs == 0:
        raise InputError("graph_ids have no meaning for a masker without graphs; leave them out")


def check_int64(name: str, tensor: Any, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise InputError unless ``tensor`` is int64 of the shape on the device."""
    check_tensor(name, tensor)
    if tensor.shape != shape or tensor.dtype != torch.int64 or tensor.device != device:
        raise InputError(
            f"{name} must be {tuple(shape)} int64 on {device}; "
            f"got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
        )


def check_one_number(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    """Raise InputError unless ``tensor``, an epoch or a step, is one int64 on the device."""
    if tensor.numel() != 1 or tensor.dtype != torch.int64 or tensor.device != device:
        raise InputError(f"{name} tensor must be one int64 on {device}; got {tensor.dtype} on {tensor.device}")


def check_no_priorities(given: dict[str, Any], weights: str) -> None:
    """Raise InputError if priorities are given beside the weights from which they would be drawn."""
    if given.pop("priorities", None) is not None:
        raise InputError(f"{weights} what priorities are drawn from here; leave priorities out")


def check_weights(name: str, weights: torch.Tensor, input_ids: torch.Tensor) -> None:
    """Raise InputError unless there is a weight for each column; on a device their values are not looked at."""
    if weights.shape != input_ids.shape or not weights.dtype.is_floating_point or weights.device != input_ids.device:
        raise InputError(
            f"{name} must be {tuple(input_ids.shape)} floating point on {input_ids.device}, a weight >= 0 for each "
            f"column; got {tuple(weights.shape)} {weights.dtype} on {weights.device}"
        )
    if weights.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((weights >= 0).all()):
        row, column = (~(weights >= 0)).nonzero()[0].tolist()
        raise InputError(
            f"{name} must be >= 0; got {weights[row, column].item()} in row {row}, column {column}; "
            "give 0 where no seed shall be"
        )


def check_embedded(embedded: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a model's embeddings if they are (rows, columns, dim) of the masker's dtype, or autocast makes them so."""
    if embedded.shape != shape:
        raise InputError(f"embeddings must turn ids into vectors of dim={shape[-1]}; got {tuple(embedded.shape)}")
    if embedded.dtype != dtype and not torch.is_autocast_enabled(embedded.device.type):
        raise InputError(f"the masker is {dtype}, the embeddings are {embedded.dtype}; use masker.to({embedded.dtype})")
    return embedded


def check_values_on_device(
    input_ids: torch.Tensor, graph_ids: torch.Tensor | None, priorities: torch.Tensor | None, size: int, n_graphs: int
) -> None:
    """Raise InputError for the first token, graph number or priority out of range: this waits for the device."""
    rows = ((input_ids < 0) | (input_ids >= size)).any(dim=1).nonzero()
    if rows.numel():
        row = int(rows[0])
        raise_unknown_token(row, input_ids[row].cpu().numpy(), size)
    if graph_ids is not None:
        check_graph_ids(graph_ids.cpu().numpy(), n_graphs)
    if priorities is not None:
        check_priorities(priorities.cpu().numpy())


# ------------------------------------------------------------------------------------------------------ NumPy arrays


def check_array(name: str, array: np.ndarray, size: int, dtype: Any) -> np.ndarray:
    """Return an array as the kernels take it: (size,) of ``dtype``."""
    if array.shape != (size,) or array.dtype != dtype:
        raise InputError(f"{name} must be ({size},) {np.dtype(dtype)}; got {array.shape} {array.dtype}")
    return np.ascontiguousarray(array)


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
            raise_unknown_token(*row_at(indptr, tokens, lost.argmax()), size)
    return indptr, np.ascontiguousarray(tokens, np.int32), longest


def check_graph_ids(graph_ids: np.ndarray, n_graphs: int) -> np.ndarray:
    """Return the graphs' numbers of rows, or raise the error for the first that is none."""
    if graph_ids.size and not (graph_ids.min() >= 0 and graph_ids.max() < n_graphs):
        row = int(np.flatnonzero((graph_ids < 0) | (graph_ids >= n_graphs))[0])
        raise InputError(
            f"graph_ids[{row}] must be in [0, {n_graphs}), the graphs of this masker; got {graph_ids[row]}"
        )
    return graph_ids


def check_priorities(priorities: np.ndarray) -> np.ndarray:
    """Return the priorities of columns, or raise the error for the first that does not fit 32 bits."""
    if priorities.size and not (priorities.min() >= 0 and priorities.max() < 2**32):
        row, column = (int(i) for i in np.argwhere((priorities < 0) | (priorities >= 2**32))[0])
        raise InputError(
            f"priorities must be in [0, 4294967296); got {priorities[row, column]} in row {row}, column {column}"
        )
    return priorities


def row_at(indptr: np.ndarray, entries: np.ndarray, place: Any) -> tuple[int, np.ndarray]:
    """Return the number of the ragged row that holds ``entries[place]``, and its entries."""
    row = int(np.searchsorted(indptr, place, side="right")) - 1
    return row, entries[indptr[row] : indptr[row + 1]]


def raise_unknown_token(row: int, tokens: np.ndarray, size: int) -> None:
    """Raise the error for the first token of a row that lies outside the vocabulary."""
    column = int(np.flatnonzero((tokens < 0) | (tokens >= size))[0])
    raise InputError(
        f"token {tokens[column]} in row {row}, column {column} must be in [0, {size}), the vocabulary of the "
        "graph; use the token dictionary that the graph was built with"
    )
