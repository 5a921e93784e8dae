"""Benchmarks of the engine and other software; BENCHMARKS.md has their results and the command of each."""
