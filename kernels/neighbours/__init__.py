"""Kernels of near-duplicate search."""
