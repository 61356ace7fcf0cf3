"""The plan as a page of text, for people: stage by stage, with the line of the program behind each operation."""

from __future__ import annotations

from typing import Any

from hpcmr.plan.fingerprint import plan_fingerprint
from hpcmr.plan.nodes import Apply, Keyed, Node, Pair, Persist, Read, Union

EXCHANGE = "exchange: rows travel to the owners of {}, grouped as far as each rank can before"


def explain(node: Node, outlet: str = "") -> str:
    """Readable plan of the rows of `node`.

    Parameters
    ----------
    node : Node
        Last node of the plan.
    outlet : str, optional
        What happens to the rows, for example ``write_hdf5 out``.

    Returns
    -------
    str
        One line per operation, no newline at the end; what goes into an operation with several inputs stands above it, indented.
        Nothing is read or run.
    """
    page = _Page()
    page.rows_of(node, 0)
    if outlet:
        page.lines.append(f"    => {outlet}")
    elif page.lines[-1].startswith("stage"):
        page.lines.pop()
    return "\n".join([f"plan {plan_fingerprint(node)[:12]}", *page.lines])


class _Page:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.stage = 0

    def rows_of(self, node: Node, depth: int, begin: bool = True) -> tuple[str, ...] | None:
        """Tell how the rows of `node` come to be; returns by which columns they are partitioned then, if they are.

        `begin`: a stage begins with them. Else they go into one with the rows of others.
        """
        steps: list[Apply] = []
        while isinstance(node, Apply):
            steps.append(node)
            node = node.parent
        keys = self._head(node, depth, begin)
        for apply in reversed(steps):
            self._line("  -> ", apply, depth)
            carries = getattr(apply.step, "carries", None)
            keys = carries(keys) if keys is not None and carries is not None else None
        return keys

    def _head(self, node: Node, depth: int, begin: bool) -> tuple[str, ...] | None:
        keys, over = None, ""
        if isinstance(node, Read):
            over = "splits of the input"
        elif isinstance(node, Keyed):
            keys, over = self._keyed(node, depth), getattr(node.operator, "over", "partitions, rows in key order")
        elif isinstance(node, Union):
            for i, parent in enumerate(node.parents):
                self._say(f"input {i + 1} of {node.label}:", depth)
                self.rows_of(parent, depth + 1, begin=False)
            over = "the rows of all inputs"
        elif isinstance(node, Pair):
            self._pair(node, depth)
            over = "joined rows"
        elif isinstance(node, Persist):
            keys, over = self._persist(node, depth), "rows kept on the ranks"
        if begin:
            self.stage += 1
            self._say(f"stage {self.stage} over {over}", depth)
        if isinstance(node, Read | Union) or (isinstance(node, Persist) and node.kept.filled):
            self._line("read ", node, depth)
        return keys

    def _keyed(self, node: Keyed, depth: int) -> tuple[str, ...] | None:
        keys = self.rows_of(node.parent, depth)
        self._line("  => ", node, depth)
        made = getattr(node.operator, "partitioned_by", None)
        if keys is not None and made and tuple(getattr(node.operator, "keys", ())) == keys:
            self._say(f"       no exchange: the rows of each {_shown(keys)} lie with their owner already", depth)
        else:
            self._say("       " + EXCHANGE.format(_wish(node)), depth)
        if getattr(node.operator, "survey", False):
            self._say("       two passes: all rows are looked at once before they travel", depth)
        return made

    def _pair(self, node: Pair, depth: int) -> None:
        self._say(f"left input of {node.label}:", depth)
        left = self.rows_of(node.left, depth + 1)
        self._say(f"right input of {node.label}:", depth)
        right = self.rows_of(node.right, depth + 1)
        self._line("  => ", node, depth)
        self._say(f"       rule: {node.operator.rule}", depth)
        keys: Any = getattr(node.operator, "left_on", None), getattr(node.operator, "right_on", None)
        for name, found, wanted in (("left", left, keys[0]), ("right", right, keys[1])):
            if found is not None and wanted is not None and tuple(wanted) == found:
                self._say(f"       if shuffled: the {name} rows of each {_shown(found)} lie with their owner already", depth)

    def _persist(self, node: Persist, depth: int) -> tuple[str, ...] | None:
        if node.kept.filled:
            return node.kept.pinned.keys if node.kept.pinned else None
        keys = self.rows_of(node.parent, depth) if node.kept.parent is not None else None
        self._line("  => ", node, depth)
        self._say("       kept on the ranks, for this action and later ones", depth)
        return keys

    def _say(self, text: str, depth: int) -> None:
        self.lines.append("    " * depth + text)

    def _line(self, mark: str, item: Node, depth: int) -> None:
        self._say(f"  {mark}{item.label}" + (f"    # {item.where}" if item.where else ""), depth)


def _wish(node: Keyed) -> str:
    return f"{node.partitions} partitions" if node.partitions else "partitions of about 8 MiB"


def _shown(keys: tuple[str, ...]) -> str:
    return ", ".join(keys)
