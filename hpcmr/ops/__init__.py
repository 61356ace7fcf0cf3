"""How one rank does it: one operation per file. No operation loops over splits or talks to other ranks: `run` drives."""
