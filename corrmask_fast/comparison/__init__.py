"""Strategies compared: several models pretrained under equal conditions, scored alike, and reported with intervals."""
