"""Benchmark of the engine on a GPU: parity with the CPU, rates, and the limits of each stage."""
