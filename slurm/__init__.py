"""Templates of batch scripts: package data, read through ``importlib.resources.files("hpcmr.slurm")``; holds no code."""

if __name__ == "slurm":
    raise ImportError("import hpcmr.slurm, not slurm: the folder is reached through the package")
