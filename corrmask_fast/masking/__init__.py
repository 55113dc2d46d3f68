"""Masking batches of cells (Algorithm 2): strategies, rates, draws, and the ways from tensors to the kernels."""
