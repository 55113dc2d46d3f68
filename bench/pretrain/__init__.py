"""Benches of pretraining: the input of a Trainer, and a training step."""
