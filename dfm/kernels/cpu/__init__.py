"""The kernels on processors, compiled by Numba."""
