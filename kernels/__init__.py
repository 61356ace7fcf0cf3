"""Compiled loops: arrays in, arrays out. Imports numpy, numba and itself only.

Import it as ``hpcmr.kernels``; under its bare name it would be a second copy with a compile cache of its own.
"""

if __name__ == "kernels":
    raise ImportError("import hpcmr.kernels, not kernels: the folder is reached through the package")
