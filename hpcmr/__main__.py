"""``python -m hpcmr``: the same as the console script ``hpcmr``."""

from hpcmr.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
