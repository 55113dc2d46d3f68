"""Collators to audit and to check: a sound one, the same with a fault each, and stand-ins for those of other projects.

The stand-ins are written in the style of what they stand for, after reading it: what is masked, by which generator,
with which seed.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from corrmask_fast import Vocabulary, read_corpus
from corrmask_fast.masking.stock import stock_collator

VOCABULARY = Vocabulary(("<pad>", "<mask>", "<cls>", "<eos>", *(f"G{i}" for i in range(60))))


def cells_of(n_cells=256, vocabulary=VOCABULARY, seed=0, least=20):
    rng = np.random.default_rng(seed)
    lo, hi = vocabulary.gene_range
    return read_corpus(
        [lo + rng.permutation(hi - lo)[: rng.integers(least, hi - lo)] for _ in range(n_cells)], vocabulary
    )


class Sound:
    """BERT's masking; a cell's mask follows from seed, epoch and cell."""

    mlm_probability = 0.15
    p, to_mask, to_random = 0.15, 0.8, 0.1

    def __init__(self, vocabulary=VOCABULARY, *, side="right", multiple=1, keep_special=True, form=torch.tensor):
        self.vocabulary, self.side, self.multiple, self.epoch = vocabulary, side, multiple, 0
        self.keep_special, self.form = keep_special, form

    def set_epoch(self, epoch):
        self.epoch = epoch

    def key(self, cell, batch):
        return [self.epoch, zlib.crc32(cell.tobytes())]

    def random_genes(self, rng, n):
        return rng.integers(*self.vocabulary.gene_range, n)

    def row(self, cell, rng):
        lo, hi = self.vocabulary.gene_range
        ids, labels = cell.copy(), np.full(cell.size, -100)
        draw, what, genes = rng.random(cell.size), rng.random(cell.size), self.random_genes(rng, cell.size)
        masked = (draw < self.p) & (cell >= lo) & (cell < hi)
        labels[masked] = cell[masked]
        ids[masked & (what < self.to_mask)] = self.vocabulary.mask_token_id
        random = masked & (what >= self.to_mask) & (what < self.to_mask + self.to_random)
        ids[random] = genes[random]
        return ids, labels

    def padded(self, ids, labels, n, rng):
        return np.full(n, self.vocabulary.pad_token_id), np.full(n, -100)

    def __call__(self, examples):
        cells = [np.array(example["input_ids"], np.int64) for example in examples]
        if not self.keep_special:
            cells = [cell[cell >= self.vocabulary.gene_range[0]] for cell in cells]
        width = -(-max(cell.size for cell in cells) // self.multiple) * self.multiple
        rows = []
        for cell in cells:
            rng = np.random.default_rng(self.key(cell, cells))
            row = self.row(cell, rng)
            more = self.padded(*row, width - cell.size, rng)
            parts = zip(row, more, strict=True) if self.side == "right" else zip(more, row, strict=True)
            rows.append([np.concatenate(part) for part in parts])
        names = "input_ids", "labels"
        return {
            name: self.form(np.stack(part).tolist()) for name, part in zip(names, zip(*rows, strict=True), strict=True)
        }


class MasksPadding(Sound):
    def padded(self, ids, labels, n, rng):
        ids, labels = super().padded(ids, labels, n, rng)
        masked = rng.random(n) < 0.1
        labels[masked], ids[masked] = ids[masked], self.vocabulary.mask_token_id
        return ids, labels


class MasksCls(Sound):
    def row(self, cell, rng):
        ids, labels = super().row(cell, rng)
        labels[0], ids[0] = cell[0], self.vocabulary.mask_token_id
        return ids, labels


class SameEachEpoch(Sound):
    def key(self, cell, batch):
        return [zlib.crc32(cell.tobytes())]


class ByBatch(Sound):
    def key(self, cell, batch):
        return [*super().key(cell, batch), sum(int(cell[2:5].sum()) for cell in batch) if len(batch) > 1 else 0]


class ByWorker(Sound):
    def key(self, cell, batch):
        worker = torch.utils.data.get_worker_info()
        return [*super().key(cell, batch), 0 if worker is None else 1 + worker.id]


class WrongLabels(Sound):
    def row(self, cell, rng):
        ids, labels = super().row(cell, rng)
        labels[labels != -100] += 1
        return ids, labels


class MaskTokenAlone(Sound):
    to_mask, to_random = 1.0, 0.0


class ChangesTokens(Sound):
    def row(self, cell, rng):
        ids, labels = super().row(cell, rng)
        plain = np.flatnonzero((labels == -100) & (cell >= self.vocabulary.gene_range[0]))[:1]
        ids[plain] = self.vocabulary.mask_token_id
        return ids, labels


class OtherRate(Sound):
    p = 0.2


class SpecialTokensDrawn(Sound):
    def random_genes(self, rng, n):
        return rng.integers(0, self.vocabulary.size, n)


class FewGenesDrawn(Sound):
    def random_genes(self, rng, n):
        return rng.integers(4, 24, n)


class CountsCalls(Sound):
    """Its masks go by how often it was called: by batch, worker, rank, and what was skipped."""

    calls = 0

    def key(self, cell, batch):
        return [*super().key(cell, batch), self.calls]

    def __call__(self, examples):
        self.calls += 1
        return super().__call__(examples)


FAULTS = {
    MasksPadding: {"padding is never masked"},
    MasksCls: {"special tokens are never masked"},
    SameEachEpoch: {"fresh masks in each epoch"},
    ByBatch: {"same masks in any batch"},
    ByWorker: {"same masks with any workers"},
    WrongLabels: {"labels are the cell's tokens"},
    MaskTokenAlone: {"shares of replacements"},
    ChangesTokens: {"other tokens stay as they are"},
    OtherRate: {"masking rate"},
    SpecialTokensDrawn: {"random replacements are any gene"},
    FewGenesDrawn: {"random replacements are any gene"},
    CountsCalls: {
        f"same masks {how}" for how in ("in any batch", "with any workers", "on any ranks", "after a resume")
    },
}


def hugging_face(vocabulary=VOCABULARY, **options):
    """Hugging Face's collator over a tokenizer that knows every special token."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({name: token for token, name in enumerate(vocabulary.names)}, unk_token="<pad>")
    special = {
        f"{role}_token": f"<{role}>" for role in ("pad", "mask", "cls", "eos") if f"<{role}>" in vocabulary.names
    }
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special)
    return transformers.DataCollatorForLanguageModeling(tokenizer, **options)


def geneformer_style(vocabulary=VOCABULARY):
    """Hugging Face's collator over an object that pads lists, and that knows ``<pad>`` and ``<mask>`` as special."""
    return stock_collator(vocabulary)


class BioNeMoStyle:
    """A dataset that masks: by a generator of its own for each (seed, epoch, number of the cell); genes alone.

    ``<cls>`` and ``<eos>`` are put around what was masked already, as the corpus has them.
    """

    def __init__(self, corpus, seed=0):
        self.corpus, self.seed, self.epoch = corpus, seed, 0

    def set_epoch(self, epoch):  # there, the epoch comes with the index
        self.epoch = epoch

    def __len__(self):
        return self.corpus.n_cells

    def __getitem__(self, index):
        _, tokens = self.corpus.gather_for_training(np.array([index]))
        ids = torch.from_numpy(tokens.astype(np.int64))
        vocabulary, (lo, hi) = self.corpus.vocabulary, self.corpus.vocabulary.gene_range
        seed = np.random.default_rng([self.seed, self.epoch, index]).integers(2**63)
        generator = torch.Generator().manual_seed(int(seed))
        draw = torch.rand(ids.shape, generator=generator)
        masked = (draw < 0.15) & (ids >= lo) & (ids < hi)
        labels = torch.where(masked, ids, -100)
        random = masked & (draw >= 0.15 * 0.8) & (draw < 0.15 * 0.9)
        ids[masked & (draw < 0.15 * 0.8)] = vocabulary.mask_token_id
        ids[random] = torch.randint(lo, hi, (int(random.sum()),), generator=generator)
        return {"input_ids": ids, "labels": labels}


def pad_alone(examples):
    """The collator beside such a dataset."""
    from torch.nn.utils.rnn import pad_sequence

    pads = {"input_ids": 0, "labels": -100}
    return {name: pad_sequence([row[name] for row in examples], True, pad) for name, pad in pads.items()}
