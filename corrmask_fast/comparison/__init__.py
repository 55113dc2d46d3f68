"""Strategies pretrained under equal conditions and compared: results, differences, the report."""
