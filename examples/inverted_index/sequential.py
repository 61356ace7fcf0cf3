"""The inverted index on one core. python sequential.py FILE..."""

import string
import sys
from pathlib import Path


def index(paths: list[Path]) -> dict[str, list[str]]:
    """Documents of each word, in the order in which the word is met."""
    found: dict[bytes, dict[str, None]] = {}
    for path in paths:
        for word in path.read_bytes().lower().split():
            stripped = word.strip(string.punctuation.encode())
            if stripped:
                found.setdefault(stripped, {})[str(path)] = None
    return {word.decode("utf-8", "surrogateescape"): list(docs) for word, docs in found.items()}


if __name__ == "__main__":
    for word, docs in sorted(index([Path(p) for p in sys.argv[1:]]).items()):
        print(word, *docs)
