"""Input files of known content for end-to-end tests, and oracles that share no code with the package."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

WORDS = ["the", "The", "naïve", "x", "a" * 40, "a" * 41, "zebra", "b\0c", "-", "'tis", "0", "00", "\udcff\udcfe", "mot", "word", "w" * 300]


def write_texts(folder: Path, files: int = 7, lines: int = 400, seed: int = 1) -> None:
    """Texts with long lines, empty lines, odd bytes, and no end of the last line."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for i in range(files):
        rows = [" ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 9, 60]))) for _ in range(lines)]
        rows.append("\t".join(rng.choices(WORDS, k=3000)))
        (folder / f"t{i}.txt").write_bytes("\n".join(rows).encode("utf-8", "surrogateescape"))


def hard_values(n: int, seed: int = 2) -> NDArray[np.float64]:
    """Values ``(n,) float64`` whose sums round: magnitudes from 1e-300 to 1e300, both signs, much cancellation."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n) * 10.0 ** rng.integers(-300, 300, n)
    plain = rng.standard_normal(n) * 1e3 + 0.1
    cancelling = np.where(np.arange(n) % 2 == 0, plain, -plain * (1 + 2.0 ** -40))
    return np.choose(rng.integers(0, 3, n), [values, plain, cancelling])


def write_events(path: Path, n: int = 60_000, keys: int = 500, seed: int = 3) -> dict[str, NDArray[Any]]:
    """``/events`` with an integer key, hard values, plain values, values with NaN and infinities, float32 and a flag."""
    rng = np.random.default_rng(seed)
    odd = rng.standard_normal(n)
    odd[rng.integers(0, n, n // 200)] = np.nan
    odd[rng.integers(0, n, n // 200)] = np.inf
    odd[rng.integers(0, n, n // 300)] = -np.inf
    columns: dict[str, NDArray[Any]] = {
        "key": rng.integers(-keys // 2, keys // 2, n),
        "hard": hard_values(n, seed),
        "value": 1e8 + rng.standard_normal(n),
        "odd": odd,
        "single": rng.standard_normal(n).astype(np.float32),
        "small": rng.integers(-100, 100, n).astype(np.int8),
        "flag": rng.random(n) < 0.01,
    }
    # One key with a single row: its sum is that value.
    columns["key"][n // 2] = 10 ** 15
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[f"events/{name}"] = values
    return columns


def exact_sum(values: NDArray[Any]) -> float:
    """Sum rounded once; +0.0 for zero, NaN and infinities as IEEE addition gives them in the end."""
    numbers = [float(v) for v in values]
    if any(math.isnan(v) for v in numbers) or {math.inf, -math.inf} <= set(numbers):
        return math.nan
    if any(math.isinf(v) for v in numbers):
        return next(v for v in numbers if math.isinf(v))
    try:
        return float(sum(map(Fraction, numbers), Fraction(0)))
    except OverflowError:
        return math.copysign(math.inf, sum(map(Fraction, numbers), Fraction(0)))


def exact_mean(values: NDArray[Any]) -> float:
    """Sum / n rounded once."""
    total = exact_sum(values)
    if not math.isfinite(total):
        if math.isnan(total) or any(math.isinf(float(v)) for v in values):
            return total
    return float(sum((Fraction(float(v)) for v in values), Fraction(0)) / len(values))


def exact_variance(values: NDArray[Any]) -> float:
    """Variance with ddof = 1, rounded once; NaN of a single value, and where a value is not finite."""
    numbers = [float(v) for v in values]
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return math.nan
    exact = [Fraction(v) for v in numbers]
    mean = sum(exact, Fraction(0)) / len(exact)
    try:
        return float(sum(((x - mean) ** 2 for x in exact), Fraction(0)) / (len(exact) - 1))
    except OverflowError:
        return math.inf


def bits(value: float) -> int:
    """The bit pattern, with all NaN alike."""
    return -1 if math.isnan(value) else int(np.float64(value).view(np.int64))
