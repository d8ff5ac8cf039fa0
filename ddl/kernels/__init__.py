"""Kernels: array operations that have a Numba or CuPy implementation beside the NumPy one.

``x.py`` holds the NumPy code and the choice, ``x_numba.py`` and ``x_cupy.py`` the compiled implementations."""
