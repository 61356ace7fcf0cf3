"""The word count on one core: bytes.split and a Counter. python sequential.py FILE..."""

import string
import sys
from collections import Counter
from pathlib import Path


def count(paths: list[Path]) -> dict[str, int]:
    found: Counter[bytes] = Counter()
    for path in paths:
        words = (word.strip(string.punctuation.encode()) for word in path.read_bytes().lower().split())
        found.update(word for word in words if word)
    return {word.decode("utf-8", "surrogateescape"): n for word, n in found.items()}


if __name__ == "__main__":
    for word, n in sorted(count([Path(p) for p in sys.argv[1:]]).items()):
        print(word, n, sep=",")
