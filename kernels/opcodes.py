"""Numbers that kernels and their callers share. Imports nothing: a rank without rows needs no compiler."""

COUNT, SUM_F, STATS_F, MIN_F, MAX_F, SQUARES_F, SUM_I, SUM_U, MIN_I, MAX_I, MIN_U, MAX_U, FIRST, LAST, MIN_S, MAX_S, NULLS = range(17)
"""Accumulator instructions; the letter tells what values are read as: float, int, unsigned, string."""

OP, PLACE, ADDRESS, STRIDE, MASK, WORDS = range(6)
"""Columns of a program."""

MICRO = 256
"""Rows between two looks at the program: their states fit in the first-level cache."""

DIGITS = 70
"""Digits of a wide sum, 32 bits each: the whole range of a double."""
