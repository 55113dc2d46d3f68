"""What a masker refuses: parameters, batches and tokens, each named with its rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrmask_fast import CorrMasker, InputError
from corrmask_fast.testing import cases

CASES = cases()


BAD_PARAMETERS = [
    ({"mlm_probability": 0}, "mlm_probability must be a number in (0, 1); got 0"),
    ({"mlm_probability": 1}, "mlm_probability must be a number in (0, 1); got 1"),
    ({"mlm_probability": 1.5}, "mlm_probability must be a number in (0, 1); got 1.5"),
    ({"mlm_probability": float("nan")}, "mlm_probability must be a number in (0, 1); got nan"),
    ({"mlm_probability": "much"}, "mlm_probability must be a number in (0, 1); got 'much'"),
    ({"structural_ratio": -0.1}, "structural_ratio must be a number in [0, 1]; got -0.1"),
    ({"structural_ratio": 1.01}, "structural_ratio must be a number in [0, 1]; got 1.01"),
    ({"max_partners": -1}, "max_partners must be an integer in [0, 2147483647]; got -1"),
    ({"max_partners": 2.5}, "max_partners must be an integer in [0, 2147483647]; got 2.5"),
    ({"mask_replace_prob": -0.1}, "mask_replace_prob must be a number in [0, 1]; got -0.1"),
    ({"random_replace_prob": 1.1}, "random_replace_prob must be a number in [0, 1]; got 1.1"),
    ({"mask_replace_prob": 0.8, "random_replace_prob": 0.3}, "must be at most 1; got 0.8 + 0.3"),
    ({"seed": -1}, f"seed must be an integer in [0, {2**64 - 1}]; got -1"),
    ({"seed": 2**64}, f"got {2**64}"),
    ({"seed": 1.0}, "got 1.0"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_PARAMETERS, ids=lambda value: str(value)[:60])
def test_parameters_out_of_range(parameters, message):
    with pytest.raises(InputError) as error:
        CorrMasker(CASES[0].graph, **parameters)
    assert message in str(error.value)


GENES = torch.arange(2, 14).repeat(2, 1)
BAD_BATCHES = [
    ([GENES[0]], {}, "input_ids must be (rows, columns) of int32 or int64; got shape (12,) of torch.int64"),
    ([GENES.float()], {}, "got shape (2, 12) of torch.float32"),
    ([GENES.to(torch.int16)], {}, "got shape (2, 12) of torch.int16"),
    ([[[2, 3]]], {}, "input_ids must be a torch tensor; got list; give torch.as_tensor(input_ids)"),
    ([GENES.numpy()], {}, "input_ids must be a torch tensor; got ndarray; give torch.as_tensor(input_ids)"),
    ([GENES, np.ones((2, 12))], {}, "attention_mask must be a torch tensor; got ndarray"),
    ([GENES, None, [[1] * 12] * 2], {}, "special_tokens_mask must be a torch tensor; got list"),
    ([GENES], {"draw_ids": np.arange(2)}, "draw_ids must be a torch tensor; got ndarray"),
    ([GENES], {"priorities": np.ones((2, 12), np.int64)}, "priorities must be a torch tensor; got ndarray"),
    ([GENES, torch.ones(2, 11)], {}, "attention_mask must have the shape (2, 12)"),
    ([GENES, torch.ones(12)], {}, "attention_mask must have the shape (2, 12)"),
    ([GENES, None, torch.ones(1, 12)], {}, "special_tokens_mask must have the shape (2, 12)"),
    ([GENES.to("meta")], {}, "input_ids lies on meta, the masker on cpu"),
    ([GENES], {"draw_ids": torch.zeros(3, dtype=torch.int64)}, "draw_ids must be (2,) int64 on cpu; got (3,)"),
    ([GENES], {"draw_ids": torch.zeros(2, dtype=torch.int32)}, "got (2,) torch.int32"),
    ([GENES], {"draw_ids": torch.zeros(2, dtype=torch.int64), "epoch": 0}, "draw_ids or epoch, not both"),
    ([GENES], {"epoch": -1}, "epoch must be an integer in [0, "),
    ([GENES], {"epoch": 1.5}, "got 1.5"),
    ([GENES], {"epoch": torch.zeros(2, dtype=torch.int64)}, "an epoch tensor must be one int64"),
    ([GENES], {"epoch": torch.zeros(1)}, "got torch.float32"),
    ([torch.tensor([[2, 3, 99999, 4]])], {"epoch": 0}, "token 99999 in row 0, column 2 must be in [0, 202)"),
    ([torch.tensor([[2, 3], [4, -1]])], {"epoch": 0}, "token -1 in row 1, column 1 must be in [0, 202)"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "message"), BAD_BATCHES, ids=lambda value: str(value)[:40])
def test_batches_that_do_not_fit(arguments, options, message):
    masker = CorrMasker(CASES[0].graph)
    with pytest.raises(InputError) as error:
        masker(*arguments, **options)
    assert message in str(error.value)
    assert masker.draw_counter.item() == 0  # an error draws nothing


@pytest.mark.parametrize("token", [-1, 202, 2**31 - 1, 2**31 + 5, 2**32 + 5, -(2**63)])
@pytest.mark.parametrize("column", [0, 3, 70, 127])
def test_tokens_outside_the_vocabulary_raise_wherever_they_stand(token, column):
    batch = np.arange(2, 130).reshape(1, 128)
    batch[0, column] = token
    masker = CorrMasker(CASES[0].graph)
    message = rf"token {token} in row 0, column {column} must be in \[0, 202\)"
    with pytest.raises(InputError, match=message):
        masker(torch.from_numpy(batch), epoch=0)
    with pytest.raises(InputError, match=message.replace("row 0", "row 1")):
        masker.mask_ragged(np.array([0, 0, 128]), batch[0], epoch=0)


def test_a_masked_token_outside_the_vocabulary_raises_too():
    """Attended to or not: a token that no dictionary has is a sign that the corpus is not the graph's."""
    batch = torch.arange(2, 14).repeat(2, 1)
    attention = torch.ones_like(batch)
    for column in (0, 5, 11):
        wrong, unseen = batch.clone(), attention.clone()
        wrong[1, column], unseen[1, column] = 500, 0
        with pytest.raises(InputError, match=f"token 500 in row 1, column {column}"):
            CorrMasker(CASES[0].graph)(wrong, unseen, epoch=0)


def test_mask_ragged_says_what_it_needs():
    masker = CorrMasker(CASES[0].graph)
    indptr, tokens = np.array([0, 2, 5]), np.arange(2, 7)
    with pytest.raises(InputError, match="needs one of draw_ids, epoch and salt"):
        masker.mask_ragged(indptr, tokens)
    with pytest.raises(InputError, match="needs one of"):
        masker.mask_ragged(indptr, tokens, draw_ids=np.zeros(2, np.int64), epoch=1)
    with pytest.raises(InputError, match=r"columns must be an integer >= 3; got 2"):
        masker.mask_ragged(indptr, tokens, columns=2, epoch=1)
    with pytest.raises(InputError, match=r"draw_ids must be \(2,\)"):
        masker.mask_ragged(indptr, tokens, draw_ids=np.zeros(3, np.int64))
    for name in ("attention_mask", "special_tokens_mask"):
        with pytest.raises(InputError, match=rf"{name} must be \(5,\)"):
            masker.mask_ragged(indptr, tokens, epoch=1, **{name: np.ones(4, np.uint8)})
    for ends in ([0, 2, 6], [0, 3, 2], [1, 2, 5], []):
        with pytest.raises(InputError, match="indptr must rise from 0"):
            masker.mask_ragged(np.array(ends, np.int64), tokens, epoch=1)


def test_a_path_is_no_graph():
    with pytest.raises(InputError, match=r"graph must be a DependencyGraph; got 'graph.safetensors'; .*load"):
        CorrMasker("graph.safetensors")


@pytest.mark.parametrize(
    "name", ["mlm_probability", "structural_ratio", "max_partners", "seed", "mask_replace_prob", "replace"]
)
def test_parameters_are_fixed(name):
    masker = CorrMasker(CASES[0].graph)
    with pytest.raises(InputError, match=f"{name} is fixed when a masker is made; make another"):
        setattr(masker, name, 0.02)


def test_masks_on_the_cpu_whatever_torchs_default_device():
    with torch.device("meta"):
        masker = CorrMasker(CASES[0].graph)
    assert masker.draw_counter.device.type == "cpu"
    with pytest.raises(InputError, match="max_partners must be an integer in"):
        CorrMasker(CASES[0].graph, max_partners=2**64)
