"""Approximate values of each group by sketches whose merge is exact: `approx_quantile` and `approx_count_distinct`.

Both states are sets of small integers with a count or a maximum each, held sparsely as finer groups: merging is adding counts or
taking maxima, so that no order of rows, merges or ranks changes a bit.

- *Quantiles*: values are counted by sign, exponent and the first `bits` bits of the mantissa (buckets that grow with the value, as in
  DDSketch, but cut from the bits of the number: no logarithm that machines could round differently). The middle of a bucket is within
  ``2**-(bits + 1)`` of every value in it.
- *Distinct values*: HyperLogLog, 2^bits registers; those that were never met take no room.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcmr.data.batch import Batch, Column, FixedColumn
from hpcmr.data.keys import KeyLayout, encode_keys
from hpcmr.data.schema import FLOAT64, INT64, ColumnType, Field, Schema
from hpcmr.errors import JobSpecError
from hpcmr.ops.accumulators import Agg
from hpcmr.ops.fine_groups import FINE, FineGroups, Index, is_number, met
from hpcmr.ops.group_quantile import check_values, quantile_of

RANK = "#rank"
NAN_BUCKET = np.int64((1 << 63) - 1)
MANTISSA_BITS = 52
LOG_BITS_MAX = 20
REGISTER_BITS = (4, 16)
_MAGNITUDE = np.int64((1 << 63) - 1)


def log_bits(error: float) -> int:
    """Bits of the mantissa that keep the relative error of a bucket's middle within `error`."""
    bits = next((b for b in range(LOG_BITS_MAX + 1) if 2.0 ** -(b + 1) <= error), -1)
    if not 0 < error < 1 or bits < 0:
        raise JobSpecError(f"approx_quantile(error={error!r}): the relative error is a number from {2.0 ** -(LOG_BITS_MAX + 1):.1e} to below 1")
    return bits


def register_bits(error: float) -> int:
    """log2 of the registers whose standard error, 1.04 / sqrt(registers), is within `error`."""
    least, most = REGISTER_BITS
    bits = max(least, math.ceil(2 * math.log2(1.04 / error))) if 0 < error < 1 else most + 1
    if bits > most:
        raise JobSpecError(f"approx_count_distinct(error={error!r}): the standard error is a number from {1.04 / 2 ** (most / 2):.4f} to below 1; "
                           "count_distinct counts exactly")
    return bits


def buckets(values: NDArray[np.float64], bits: int) -> NDArray[np.int64]:
    """Bucket of each value: ascending with the value, 0 for zero, negative for negative values; NaN has the last one."""
    raw = np.ascontiguousarray(values, np.float64).view(np.int64)
    magnitude = (raw & _MAGNITUDE) >> np.int64(MANTISSA_BITS - bits)
    return np.where(np.isnan(values), NAN_BUCKET, np.where(raw < 0, -magnitude, magnitude))


def bucket_values(found: NDArray[np.int64], bits: int) -> NDArray[np.float64]:
    """The value that stands for each bucket: its middle, 0 for the one at zero, infinity for that of infinity."""
    shift = MANTISSA_BITS - bits
    nan = found == NAN_BUCKET
    magnitude = np.abs(np.where(nan, 0, found))
    raw = (magnitude << np.int64(shift)) | np.int64(1 << (shift - 1))
    infinite = magnitude == np.int64(2047 << bits)
    out: NDArray[np.float64] = np.where(magnitude == 0, 0.0, np.where(infinite, np.inf, np.where(infinite, 0, raw).view(np.float64)))
    return np.where(nan, np.nan, np.copysign(out, np.where(nan, 1, found)) + 0.0)


class GroupLogBuckets(FineGroups):
    """Values counted by magnitude. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    column : str
    bits : int
        Of the mantissa.
    wants : tuple of Agg
        `approx_quantile`.
    """

    def __init__(self, keys: tuple[str, ...], column: str, bits: int, wants: tuple[Agg, ...]) -> None:
        super().__init__(keys, wants)
        self.column, self.bits = column, bits

    def value_fields(self, schema: Schema) -> tuple[Field, ...]:
        kind = schema[self.column].type
        if not is_number(kind):
            raise JobSpecError(f"approx_quantile({self.column!r}) needs numbers, and the column is {kind}")
        return (Field(FINE, INT64),)

    def values(self, batch: Batch) -> dict[str, Column]:
        column = batch[self.column]
        assert isinstance(column, FixedColumn)
        return {FINE: FixedColumn(buckets(column.values.astype(np.float64, copy=False), self.bits), column.valid)}

    def result_field(self, agg: Agg, schema: Schema) -> Field:
        return Field(agg.name, FLOAT64, schema[self.column].attrs)

    def result(self, agg: Agg, fine: Batch, starts: Index) -> Column:
        column = fine[FINE]
        assert isinstance(column, FixedColumn)
        return quantile_of(fine, starts, agg.option("q", 0.5), "lower", FixedColumn(bucket_values(column.values, self.bits)))


class GroupRegisters(FineGroups):
    """The registers of a HyperLogLog sketch, each with the highest rank that it met. A `KeyedOperator`.

    Parameters
    ----------
    keys : tuple of str
    column : str
    bits : int
        log2 of the number of registers.
    wants : tuple of Agg
        `approx_count_distinct`.
    """

    def __init__(self, keys: tuple[str, ...], column: str, bits: int, wants: tuple[Agg, ...]) -> None:
        super().__init__(keys, wants, (Agg("max", RANK, RANK),))
        self.column, self.bits = column, bits

    def value_fields(self, schema: Schema) -> tuple[Field, ...]:
        for agg in self.wants:
            check_values(agg, schema[self.column].type)
        self.value_layout = KeyLayout.of(schema, (self.column,))
        return Field(FINE, ColumnType.fixed("uint16")), Field(RANK, ColumnType.fixed("uint8"))

    def values(self, batch: Batch) -> dict[str, Column]:
        from hpcmr.kernels.group_values import hash_registers

        column = batch[self.column]
        hashes = np.ascontiguousarray(encode_keys(batch, self.value_layout.for_batches(batch)).hashes)
        register, rank = np.empty(batch.nrows, np.uint16), np.empty(batch.nrows, np.uint8)
        hash_registers(hashes, self.bits, register, rank)
        return {FINE: FixedColumn(register, column.valid), RANK: FixedColumn(rank)}

    def result_field(self, agg: Agg, schema: Schema) -> Field:
        return Field(agg.name, INT64)

    def result(self, agg: Agg, fine: Batch, starts: Index) -> Column:
        from hpcmr.kernels.group_values import distinct_estimates

        rank: Any = fine[RANK]
        out = np.empty(len(starts) - 1, np.int64)
        distinct_estimates(starts, np.ascontiguousarray(rank.values), met(fine), self.bits, out)
        return FixedColumn(out)
