"""Ways in which a file may be damaged on disk: flipped bits, cut ends, blocks of zeros, bytes that are added."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

BLOCK = 512


def flips(content: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """`count` single bits, spread over the file; every byte once where it has no more bytes than that."""
    step = max(1.0, len(content) / count) if content else 1.0
    for i in range(min(count, len(content))):
        at, bit = int(i * step), int(rng.integers(8))
        yield f"bit {bit} of byte {at} flipped", content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1:]


def cuts(content: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """The file ends early: at byte 0, at its last byte, and at random places in between."""
    places = {0, len(content) - 1, *rng.integers(0, len(content), max(0, count - 2)).tolist()}
    for at in sorted(places):
        yield f"cut at byte {at}", content[:at]


def zeros(content: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """Blocks, and the file's tail, are zero: those that are so already are left out."""
    blocks = range(0, len(content), BLOCK)
    for i in sorted(rng.choice(len(blocks), min(count, len(blocks)), replace=False).tolist()):
        at = blocks[i]
        for end, name in ((min(len(content), at + BLOCK), "block"), (len(content), "tail")):
            if content[at:end].strip(b"\0"):
                yield f"{name} from byte {at} zeroed", content[:at] + bytes(end - at) + content[end:]


def more(content: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """Bytes behind the end."""
    for n in (1, BLOCK)[:count]:
        yield f"{n} bytes added", content + rng.bytes(n)


def every(content: bytes, rng: np.random.Generator, count: int) -> Iterator[tuple[str, bytes]]:
    """About `count` damages of all kinds, two thirds of them flipped bits."""
    yield from flips(content, rng, count * 2 // 3)
    yield from cuts(content, rng, count // 6)
    yield from zeros(content, rng, count // 12)
    yield from more(content, rng, 2)
