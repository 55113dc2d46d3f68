"""What is compared with what, and by how much it shall win."""

from __future__ import annotations

from goals import Goal

STOCK_INPUT = "stock Trainer, datasets folder, Geneformer-style collator"
LISTS_INPUT = "stock Trainer, datasets folder, our collator"
PLAIN_INPUT = "stock Trainer, CorpusDataset, our collator"
OUR_INPUT = "CorrMaskTrainer, CorpusDataset, our collator"
STOCK_STEP = "BertForMaskedLM"
OUR_STEP = "BertForSparseMaskedLM"
# A step with logits at masked positions alone, by where its masks come from.
READY_STEP = "step, masked beforehand"
CORRMASK_STEP = "step, CorrMasker inside"
MAM_STEP = "step, MultinomialAttentionMasker inside"
CORRMASK_ALONE = "CorrMasker alone"
MAM_ALONE = "MultinomialAttentionMasker's masks alone"
STEPS = {"step": 0.0, "step-dropout": 0.02}  # case → dropout

TARGETS = (
    Goal("input of our Trainer", "input", OUR_INPUT, (STOCK_INPUT,), 40),
    Goal("input of the stock Trainer", "input", PLAIN_INPUT, (STOCK_INPUT,), 40),
    Goal("input from an unchanged folder", "input", LISTS_INPUT, (STOCK_INPUT,), 8),
    *(Goal(f"training step, dropout {rate}", case, OUR_STEP, (STOCK_STEP,), 1.8) for case, rate in STEPS.items()),
    Goal("training step, masks by CorrMask", "mam", CORRMASK_STEP, (READY_STEP,), 0.98),
    Goal("training step, masks by MAM", "mam", MAM_STEP, (READY_STEP, CORRMASK_STEP), 0.95),
)
