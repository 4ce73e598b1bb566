"""Vectors of corpora that do not fit into memory: stores of them, made in parts, and searched."""
