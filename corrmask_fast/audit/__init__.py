"""What masks hide: every strategy counted as it masks in training."""
