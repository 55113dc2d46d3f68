"""Benches of a CUDA device; see README.md. ``bench/`` is on the path: ``from gpu import masking``."""
