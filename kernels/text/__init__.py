"""Kernels over text: strings, segmentation, word lists, cleaning, tokens."""
