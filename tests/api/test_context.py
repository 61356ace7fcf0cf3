"""What a job sees of its surroundings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcmr.api.context import JobContext, outputs_of
from hpcmr.comm.world import World
from hpcmr.errors import JobSpecError


def context(**params: Any) -> JobContext:
    return JobContext(World(), "stats", params, Path("runs/stats-1"), outputs_of(params))


def test_outputs() -> None:
    assert context().output("a") == Path("runs/stats-1/output/a")
    assert context(output={"a": "x"}).output("a") == Path("x")
    assert context(output={"path": "x"}).output("a") == Path("x")


def test_one_path_for_two_outputs_is_an_error() -> None:
    ctx = context(output={"path": "x"})
    assert ctx.output("a") == ctx.output("a") == Path("x")
    with pytest.raises(JobSpecError, match=r"outputs 'a' and 'b': set each, for example --set output.b=x-b"):
        ctx.output("b")
    mixed = context(output={"path": "x", "b": "y"})
    assert (mixed.output("a"), mixed.output("b")) == (Path("x"), Path("y"))


@pytest.mark.parametrize("name", ["", "path", "a/b", "..", 3])
def test_names_of_outputs(name: Any) -> None:
    with pytest.raises(JobSpecError, match="plain word"):
        context().output(name)


def test_output_that_is_no_table() -> None:
    with pytest.raises(JobSpecError, match=r"--set output\.path=out"):
        context(output="out")


def test_params() -> None:
    ctx = context(input="a.h5", seed=3)
    assert ctx.params["input"] == "a.h5"
    assert ctx.params.get("none", 1) == 1
    assert (ctx.seed, context().seed) == (3, 0)
    with pytest.raises(JobSpecError, match="add --set limit=VALUE; set are 'input', 'seed'"):
        ctx.params["limit"]


@pytest.mark.parametrize("seed", ["x", 1.5, -1, True, 1 << 63])
def test_seeds(seed: Any) -> None:
    with pytest.raises(JobSpecError, match=r"--set seed="):
        context(seed=seed)


def test_the_log_speaks_on_rank_0_only() -> None:
    assert not context().log.disabled
