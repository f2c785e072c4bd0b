"""Numba's part: kernels to machine code. Imported only where a kernel has to be compiled."""
