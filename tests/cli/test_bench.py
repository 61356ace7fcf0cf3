"""Benchmarks: sizes, the registry, and that the exchange one runs (its figures are for people)."""

import argparse
import json

import pytest

from hpcmr.cli import bench


@pytest.mark.parametrize(
    ("text", "nbytes"), [("4096", 4096), ("1G", 1 << 30), ("1GiB", 1 << 30), ("256M", 256 << 20), ("1.5k", 1536), ("2MB", 2 << 20)]
)
def test_sizes(text, nbytes):
    assert bench.size_of(text) == nbytes


@pytest.mark.parametrize("text", ["", "x", "1X", "G"])
def test_what_is_no_size(text):
    with pytest.raises(argparse.ArgumentTypeError):
        bench.size_of(text)


@pytest.mark.mpi
def test_exchange_reports_its_share_of_the_raw_bandwidth(world, capsys):
    parser = argparse.ArgumentParser()
    bench.add_parser(parser.add_subparsers())
    assert bench.run(parser.parse_args(["bench", "exchange", "--size", "1M", "--repeat", "1", "--json"])) == 0
    out = capsys.readouterr().out
    if world.rank == 0:
        said = json.loads(out)
        assert said["ranks"] == world.size and said["hpcmr / raw"]["value"] > 0
    else:
        assert out == ""
