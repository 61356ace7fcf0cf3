"""The plan as a page of text, for people: stage by stage, with the line of the program behind each operation."""

from __future__ import annotations

from hpcmr.plan.fingerprint import plan_fingerprint
from hpcmr.plan.nodes import Apply, Keyed, Node, Read, chain


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
        One line per operation, no newline at the end. Nothing is read or run.
    """
    lines = [f"plan {plan_fingerprint(node)[:12]}"]
    stage = 0
    for item in chain(node):
        if isinstance(item, Read):
            lines += _stage(stage := stage + 1, "splits of the input")
        lines.append(_line(item))
        if isinstance(item, Keyed):
            wish = f"{item.partitions} partitions" if item.partitions else "partitions of about 8 MiB"
            lines.append(f"       exchange: rows travel to the owners of {wish}, grouped as far as each rank can before")
            lines += _stage(stage := stage + 1, "partitions, rows in key order")
    if outlet:
        lines.append(f"    => {outlet}")
    elif lines[-1].startswith("stage"):
        lines.pop()
    return "\n".join(lines)


def _stage(number: int, over: str) -> list[str]:
    return [f"stage {number} over {over}"]


def _line(item: Node) -> str:
    mark = {Read: "read ", Apply: "  -> ", Keyed: "  => "}[type(item)]
    return f"  {mark}{item.label}" + (f"    # {item.where}" if item.where else "")
