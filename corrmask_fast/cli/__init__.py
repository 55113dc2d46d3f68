"""The command line: a group of commands is a file; ``main`` puts them together."""
