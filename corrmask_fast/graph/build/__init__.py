"""The engine that builds a dependency graph from a corpus."""
