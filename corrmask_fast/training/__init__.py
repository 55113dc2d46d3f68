"""Pretraining: Hugging Face's Trainer with masking inside, the cheaper head, and whole runs."""
