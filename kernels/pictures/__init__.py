"""Kernels over pixels: statistics, resampling, fingerprints."""
