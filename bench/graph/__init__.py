"""Benches of building the dependency graph on the CPU."""
