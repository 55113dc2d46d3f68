"""What runs a batch: checks, draws, tables, then rows on the CPU (``rows.py``) or on a CUDA device (``device.py``)."""
