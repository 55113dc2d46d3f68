"""Fast, exact, dependency-aware gene masking for single-cell foundation models.

Public names load on first use, so that importing this package costs no more than importing NumPy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "AuditReport": "audit_report",
    "BertForSparseMaskedLM": "sparse_head",
    "CellAnnotation": "cell_annotation",
    "Corpus": "corpus",
    "CorpusDataset": "dataset",
    "CorrMaskCallback": "pretrain",
    "CorrMaskTrainer": "pretrain",
    "CorrMasker": "maskers",
    "Cosine": "schedules",
    "DataCollatorForCorrMask": "collator",
    "DependencyGraph": "graph",
    "EdgeStability": "graph_stability",
    "FineTuning": "fine_tuning",
    "GeneClassification": "gene_classification",
    "GraphComparison": "graph_compare",
    "InputError": "errors",
    "Linear": "schedules",
    "MaskedBatch": "maskers",
    "MaskedValues": "value_masking",
    "Masker": "masker_base",
    "MissingExtraError": "errors",
    "MultinomialAttentionMasker": "mam",
    "PMIMasker": "maskers",
    "PMITable": "pmi",
    "Piecewise": "schedules",
    "RaggedBatch": "dataset",
    "RandomMasker": "maskers",
    "SpanMasker": "maskers",
    "ValueReplacement": "value_masking",
    "Vocabulary": "vocabulary",
    "WindowShares": "rank_windows",
    "annotate_cells": "cell_annotation",
    "audit_all_strategies": "audit_all",
    "audit_masking": "audit",
    "build_dependency_graph": "graph_building",
    "build_graphs_by": "graph_groups",
    "classify_genes": "gene_classification",
    "compare_graphs": "graph_compare",
    "correlated_windows": "rank_windows",
    "edge_stability": "graph_stability",
    "export_graph": "graph_export",
    "get_num_threads": "threads",
    "make_masker": "strategies",
    "merge_graphs": "graph_compare",
    "read_corpus": "corpus_io",
    "rewired": "rewiring",
    "set_num_threads": "threads",
    "tokenize_h5ad": "tokenizer",
    "write_corpus": "corpus_io",
}

__all__ = sorted(_ROOMS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
