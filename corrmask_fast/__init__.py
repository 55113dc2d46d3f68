"""Fast, exact, dependency-aware gene masking for single-cell foundation models.

Public names load on first use, so that importing this package costs no more than importing NumPy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_MODULES = {
    "AuditReport": "audit.report",
    "BalancedCorrMasker": "masking.strategies.balanced",
    "BertForSparseMaskedLM": "training.sparse_head",
    "CellAnnotation": "evaluation.cell_annotation",
    "Comparison": "comparison.comparison",
    "ConformanceReport": "audit.conformance",
    "Corpus": "cells.corpus",
    "CorpusDataset": "cells.dataset",
    "CorpusStream": "cells.stream",
    "CorpusWriter": "cells.corpus_io",
    "CorrMaskCallback": "training.callback",
    "CorrMaskLightningCallback": "integrations.lightning",
    "CorrMaskTrainer": "training.trainer",
    "CorrMasker": "masking.strategies.corrmask",
    "Cosine": "masking.schedules",
    "CountsDataset": "cells.dataset",
    "DataCollatorForCorrMask": "masking.collator",
    "DataCollatorForCounts": "masking.count_collator",
    "DataCollatorForValues": "masking.value_collator",
    "DependencyGraph": "graph.dependency_graph",
    "EdgeStability": "graph.stability",
    "FineTuning": "evaluation.fine_tuning",
    "FunctionMasker": "masking.strategies.function",
    "GeneClassification": "evaluation.gene_classification",
    "GeneEmbeddings": "evaluation.embeddings",
    "GeneSetMasker": "masking.strategies.gene_sets",
    "GraphComparison": "graph.compare",
    "GraphModules": "graph.modules",
    "InputError": "errors",
    "Linear": "masking.schedules",
    "MaskScores": "evaluation.masked_scores",
    "MaskedBatch": "masking.base",
    "MaskedValues": "masking.value_masking",
    "Masker": "masking.base",
    "MatchedRandomMasker": "masking.strategies.matched",
    "MatchedWeights": "masking.matching",
    "MissingExtraError": "errors",
    "MultinomialAttentionMasker": "masking.strategies.mam",
    "PMIMasker": "masking.strategies.pmi",
    "PMITable": "masking.pmi_table",
    "PackedBatchSampler": "training.sampling",
    "PaddingCollator": "masking.collator",
    "Piecewise": "masking.schedules",
    "PretrainingSettings": "training.settings",
    "RaggedBatch": "cells.dataset",
    "RandomMasker": "masking.strategies.random",
    "RankEncoder": "cells.rank_encoder",
    "RewiredCorrMasker": "masking.strategies.corrmask",
    "Scoring": "comparison.plan",
    "SetEnrichment": "graph.genesets",
    "Shortcut": "evaluation.shortcut",
    "ShuffledSampler": "training.sampling",
    "SpanMasker": "masking.strategies.span",
    "ValueReplacement": "masking.value_masking",
    "Vocabulary": "cells.vocabulary",
    "WeightedMasker": "masking.strategies.weighted",
    "WindowShares": "audit.rank_windows",
    "annotate_cells": "evaluation.cell_annotation",
    "audit_all_strategies": "audit.all_strategies",
    "audit_collator": "audit.collators",
    "audit_masking": "audit.masks",
    "build_dependency_graph": "graph.build.building",
    "build_graphs_by": "graph.groups",
    "check_collator": "audit.conformance",
    "classify_genes": "evaluation.gene_classification",
    "compare_graphs": "graph.compare",
    "compare_strategies": "comparison.running",
    "corpus_medians": "cells.tokenizer",
    "correlated_windows": "audit.rank_windows",
    "edge_stability": "graph.stability",
    "embed_cells": "evaluation.embeddings",
    "embed_genes": "evaluation.embeddings",
    "enrich_gene_sets": "graph.genesets",
    "export_graph": "graph.export",
    "find_modules": "graph.modules",
    "get_num_threads": "threads",
    "make_masker": "masking.factory",
    "masked_lm_loss": "training.losses",
    "matched_weights": "masking.matching",
    "measure_shortcut": "evaluation.shortcut",
    "merge_graphs": "graph.compare",
    "plot_audit": "audit.plots",
    "plot_graph": "graph.plots",
    "pretrain": "training.run",
    "read_corpus": "cells.corpus_io",
    "read_gene_labels": "evaluation.gene_classification",
    "read_gene_sets": "cells.gene_sets",
    "rewired": "graph.rewiring",
    "score_masks": "evaluation.masked_scores",
    "set_num_threads": "threads",
    "stream_corpus": "cells.stream",
    "suggest_thresholds": "graph.build.thresholds",
    "tokenize": "cells.tokenizer",
    "tokenize_h5ad": "cells.tokenizer",
    "with_sparse_head": "training.sparse_head",
    "write_corpus": "cells.corpus_io",
}

# `import *` does not need Lightning, which has an extra of its own.
__all__ = sorted(_MODULES.keys() - {"CorrMaskLightningCallback"})  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_MODULES)
