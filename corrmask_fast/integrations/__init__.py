"""Trainers of other packages, each imported on use."""
