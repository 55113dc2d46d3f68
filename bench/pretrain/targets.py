"""What is compared with what, and by how much it shall win."""

from __future__ import annotations

from goals import Goal

STOCK_INPUT = "stock Trainer, datasets folder, Geneformer-style collator"
LISTS_INPUT = "stock Trainer, datasets folder, our collator"
PLAIN_INPUT = "stock Trainer, CorpusDataset, our collator"
OUR_INPUT = "CorrMaskTrainer, CorpusDataset, our collator"
STOCK_STEP = "BertForMaskedLM"
OUR_STEP = "BertForSparseMaskedLM"
STEPS = {"step": 0.0, "step-dropout": 0.02}  # case → dropout

TARGETS = (
    Goal("input of our Trainer", "input", OUR_INPUT, (STOCK_INPUT,), 40),
    Goal("input of the stock Trainer", "input", PLAIN_INPUT, (STOCK_INPUT,), 40),
    Goal("input from an unchanged folder", "input", LISTS_INPUT, (STOCK_INPUT,), 8),
    *(Goal(f"training step, dropout {rate}", case, OUR_STEP, (STOCK_STEP,), 1.8) for case, rate in STEPS.items()),
)
