"""Who talks to whom. The only package that imports mpi4py."""
