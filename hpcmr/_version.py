"""The version, in one place: setup.cfg, the command line and what is written to files read it here."""

__version__ = "0.1.0"
