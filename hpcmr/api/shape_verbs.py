"""Verbs that change which rows there are and where they lie, not what is in them."""

from __future__ import annotations

from hpcmr.api.base import TableBase


class ShapeVerbs(TableBase):
    """The operations of a `Table` on its rows as a whole."""

    __slots__ = ()
