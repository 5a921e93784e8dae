"""Benchmarks: the engine beside the plain script of a good day's work."""
