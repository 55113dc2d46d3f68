"""Compiled kernels: each op is a pair x.py (Numba, CPU) and x.cu (CUDA), the same bits from both.

Kernels only compute: arrays come checked, contiguous and allocated from ``corrmask_fast``, and nothing raises here.
"""
