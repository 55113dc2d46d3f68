"""The gene dependency graph: building it from a corpus (Algorithm 1), keeping, comparing and drawing it."""
