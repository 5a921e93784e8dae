"""Our own kernels: plain array functions, compiled by Numba."""
