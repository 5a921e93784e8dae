"""Benchmarks of the engine beside other software; BENCHMARKS.md has their results and the command of each."""
