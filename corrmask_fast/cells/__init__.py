"""Cells as a corpus: vocabularies, tokenised cells, how counts become tokens, and batches of cells for PyTorch."""
