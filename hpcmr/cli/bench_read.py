"""``hpcmr bench read``: a contiguous HDF5 column into batches, beside ``numpy.fromfile`` of as many bytes."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile

from hpcmr.cli.bench import Figures, bench, seconds_of


@bench("read", "a contiguous HDF5 column into batches, against numpy.fromfile of the same bytes")
def bench_read(args: argparse.Namespace) -> Figures:
    """Each rank reads a file of its own, which it has just written: from the page cache, if that is large enough. Files are closed
    and opened again for each measurement; splits were cut before."""
    import numpy as np

    from hpcmr.comm.world import World
    from hpcmr.io.hdf5 import Hdf5Source
    from hpcmr.io.hdf5_sample import write_sample

    world = World.of()
    rows = max(1, args.size // 8)
    times: dict[str, list[float]] = {"fromfile": [], "hpcmr": []}
    with tempfile.TemporaryDirectory(prefix="hpcmr-bench-") as folder:
        path = os.path.join(folder, "sample.h5")
        with world.together("write the sample file"):
            offset = write_sample(path, rows)
        source = Hdf5Source(path)
        schema, splits = source.survey()
        source.adopt(schema, splits)
        seen = [0]

        def plain() -> None:
            np.fromfile(path, np.float64, rows, offset=offset)

        def ours() -> None:
            seen[0] = sum(batch.nrows for split in splits for batch in source.read(split))
            source.close()

        for turn in range(args.repeat + 1):           # the first turn touches the memory
            for name, function in (("fromfile", plain), ("hpcmr", ours)):
                taken = seconds_of(world, function)
                if turn:
                    times[name].append(taken)
        assert seen[0] == rows
    nbytes = 8.0 * rows * world.size
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    return [("numpy.fromfile", nbytes / seconds["fromfile"] / 1e9, "GB/s of all ranks"),
            ("hpcmr, contiguous HDF5 column into batches", nbytes / seconds["hpcmr"] / 1e9, "GB/s of all ranks"),
            ("hpcmr / numpy.fromfile", 100 * seconds["fromfile"] / seconds["hpcmr"], "%")]
