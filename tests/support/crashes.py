"""What a disk may hold after a power cut: every file operation of some code is recorded, and states of the disk are made of the record.

Between two operations the machine loses power. What was synced is there. Of the rest any part may be there: each write and each
change of a folder kept or lost, writes torn at sectors, a file long enough but full of zeros. Rules that every file system keeps:
an operation on a name that never came to be did not happen either, operations on one name stay in their order, and a rename or a
link happens as a whole.

::

    with Recorder(folder) as record:       # the folder is empty
        ...                                # what is to survive
        record.mark("committed 1")
    record.check()                         # nothing was done behind its back
    for state in states(record.ops, seed=1):
        state.write(other_folder)          # state.marks: what had been said to be done before the power went
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

SECTOR = 512
DATA = ("write", "truncate")
ROOT = 0

Name = tuple[int, str]
"""A folder and a name in it."""


def _id(about: os.stat_result) -> tuple[int, int]:
    return about.st_dev, about.st_ino


@dataclass(frozen=True)
class Op:
    """One operation. `names` are those that it reads or changes; `inode` the file or folder that it makes, writes, or syncs."""

    kind: str
    inode: int = -1
    names: tuple[Name, ...] = ()
    offset: int = 0
    data: bytes = b""

    def __str__(self) -> str:
        where = " ".join(f"{folder}/{name}" for folder, name in self.names)
        return f"{self.kind} {where} #{self.inode} {self.offset}+{len(self.data)}"


class Recorder:
    """Records what `os` is asked to do below a folder, in the order in which it is done, whichever thread asks."""

    def __init__(self, root: Path) -> None:
        assert not os.listdir(root)
        self.root = root.resolve()
        self.ops: list[Op] = []
        self._lock = threading.RLock()
        self._inodes: dict[tuple[int, int], int] = {_id(os.stat(self.root)): ROOT}      # the system's -> ours
        self._count = 1
        self._fds: dict[int, int] = {}
        self._patches = contextlib.ExitStack()

    # -- watching -----------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Recorder:
        for name in ("open", "close", "write", "pwrite", "pwritev", "ftruncate", "truncate", "fsync", "rename", "replace", "link", "unlink",
                     "remove", "mkdir", "rmdir"):
            self._patches.enter_context(mock.patch.object(os, name, self._watched(getattr(os, name), getattr(self, f"_on_{name}"))))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def mark(self, what: str) -> None:
        """Note that `what` had been promised by now."""
        with self._lock:
            self.ops.append(Op("mark", data=what.encode()))

    def together(self, rng: np.random.Generator, *works: Callable[[], Any]) -> list[Any]:
        """Do `works`, of which none sees what another does, and record them as if they had been done at the same time."""
        results, parts, ops = [], [], self.ops
        for work in works:
            self.ops = []
            results.append(work())
            parts.append(self.ops)
        order = rng.permutation([i for i, part in enumerate(parts) for _ in part])
        self.ops = ops
        for i in order:
            ops.append(parts[i].pop(0))
        return results

    def _watched(self, real: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                return note(real, *args, **options)

        return call

    def _add(self, kind: str, inode: int = -1, *names: Name | None, offset: int = 0, data: bytes = b"") -> None:
        self.ops.append(Op(kind, inode, tuple(n for n in names if n is not None), offset, data))

    def _name(self, path: Any, dir_fd: int | None = None) -> Name | None:
        """A path as a folder that we know and a name in it; None if it does not lie below the root."""
        if isinstance(path, int):
            return None
        text = os.fspath(path)
        above, name = os.path.split(text.decode() if isinstance(text, bytes) else text)
        try:
            about = os.stat(above or ".", dir_fd=dir_fd if not os.path.isabs(above) else None) if above or dir_fd is None else os.fstat(dir_fd)
        except OSError:
            return None
        inode = self._inodes.get(_id(about))
        return None if inode is None else (inode, name)

    def _new(self, number: tuple[int, int]) -> int:
        self._inodes[number] = self._count
        self._count += 1
        return self._count - 1

    def _forget(self, name: Name | None, path: Any, dir_fd: int | None) -> None:
        """The system may give the number of a file that goes to another one."""
        with contextlib.suppress(OSError):
            about = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
            if name is not None and about.st_nlink <= 1:
                self._inodes.pop(_id(about), None)

    # -- what each call does ------------------------------------------------------------------------------------------------------

    def _on_open(self, real: Callable[..., int], path: Any, flags: int, *args: Any, **options: Any) -> int:
        name = self._name(path, options.get("dir_fd"))
        there = name is not None and os.path.lexists(path) if options.get("dir_fd") is None else True
        fd = real(path, flags, *args, **options)
        number = _id(os.fstat(fd))
        if name is not None and flags & os.O_CREAT and not there:
            self._add("create", self._new(number), name)
        elif flags & os.O_TRUNC and number in self._inodes:
            self._add("truncate", self._inodes[number])
        if number in self._inodes:
            self._fds[fd] = self._inodes[number]
        return fd

    def _on_close(self, real: Callable[..., None], fd: int) -> None:
        self._fds.pop(fd, None)
        real(fd)

    def _on_write(self, real: Callable[..., int], fd: int, data: Any) -> int:
        at = os.lseek(fd, 0, os.SEEK_CUR) if fd in self._fds else 0
        return self._wrote(fd, bytes(data), at, real(fd, data))

    def _on_pwrite(self, real: Callable[..., int], fd: int, data: Any, offset: int) -> int:
        return self._wrote(fd, bytes(data), offset, real(fd, data, offset))

    def _on_pwritev(self, real: Callable[..., int], fd: int, parts: Sequence[Any], offset: int, *flags: int) -> int:
        return self._wrote(fd, b"".join(bytes(p) for p in parts), offset, real(fd, parts, offset, *flags))

    def _wrote(self, fd: int, data: bytes, offset: int, done: int) -> int:
        if fd in self._fds:
            self._add("write", self._fds[fd], offset=offset, data=data[:done])
        return done

    def _on_ftruncate(self, real: Callable[..., None], fd: int, size: int) -> None:
        real(fd, size)
        if fd in self._fds:
            self._add("truncate", self._fds[fd], offset=size)

    def _on_truncate(self, real: Callable[..., None], path: Any, size: int) -> None:
        real(path, size)
        inode = self._fds.get(path) if isinstance(path, int) else self._inodes.get(_id(os.stat(path)))
        if inode is not None:
            self._add("truncate", inode, offset=size)

    def _on_fsync(self, real: Callable[..., None], fd: Any) -> None:
        number = fd if isinstance(fd, int) else fd.fileno()
        if number in self._fds:
            self._add("fsync", self._fds[number])
        else:
            real(fd)

    def _on_rename(self, real: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        names = self._name(source, options.get("src_dir_fd")), self._name(target, options.get("dst_dir_fd"))
        self._forget(names[1], target, options.get("dst_dir_fd"))
        real(source, target, **options)
        if names[0] is not None:
            assert names[1] is not None, f"{source} is moved out of what is watched"
            self._add("rename", -1, *names)

    _on_replace = _on_rename

    def _on_link(self, real: Callable[..., None], source: Any, target: Any, **options: Any) -> None:
        names = self._name(source), self._name(target)
        real(source, target, **options)
        if names[1] is not None:
            assert names[0] is not None, f"{source} is linked from without"
            self._add("link", -1, *names)

    def _on_unlink(self, real: Callable[..., None], path: Any, **options: Any) -> None:
        name = self._name(path, options.get("dir_fd"))
        self._forget(name, path, options.get("dir_fd"))
        real(path, **options)
        if name is not None:
            self._add("unlink", -1, name)

    _on_remove = _on_unlink

    def _on_mkdir(self, real: Callable[..., None], path: Any, *args: Any, **options: Any) -> None:
        name = self._name(path, options.get("dir_fd"))
        real(path, *args, **options)
        if name is not None:
            self._add("mkdir", self._new(_id(os.stat(path, dir_fd=options.get("dir_fd")))), name)

    def _on_rmdir(self, real: Callable[..., None], path: Any, **options: Any) -> None:
        name = self._name(path, options.get("dir_fd"))
        real(path, **options)
        if name is not None:
            self._add("rmdir", -1, name)

    def check(self, but: str = "") -> None:
        """Assert that the record makes just what is in the folder, `but` for some paths: nothing was written by a way that is not watched."""
        real: Tree = {}
        for path in sorted(self.root.rglob("*")):
            real[str(path.relative_to(self.root))] = None if path.is_dir() else path.read_bytes()
        made = Disk(self.ops).tree()
        differ = sorted(n for n in real.keys() | made.keys() if real.get(n, 0) != made.get(n, 0) and not (but and but in n))
        assert not differ, f"not as recorded: {differ[:10]}"


Tree = dict[str, "bytes | None"]
"""What a disk holds: content by path, None for a folder."""


class Disk:
    """The disk after some operations, all in order: those in `lost` never happened, those in `torn` in part.

    `torn` gives for a write which of its bytes were written, as a range; the others are as they were, or zeros beyond the file's end.
    """

    def __init__(self, ops: Sequence[Op], lost: frozenset[int] = frozenset(), torn: dict[int, tuple[int, int]] | None = None) -> None:
        self._folders: dict[int, dict[str, int]] = {ROOT: {}}
        self._files: dict[int, bytearray] = {}
        for i, op in enumerate(ops):
            if i not in lost:
                self._apply(op, (torn or {}).get(i))

    def _apply(self, op: Op, part: tuple[int, int] | None) -> None:
        if op.kind in DATA:
            if op.inode in self._files:
                _put(self._files[op.inode], op, part)
        elif op.names:
            self._rename(op)

    def _rename(self, op: Op) -> None:
        """Every operation on names; nothing happens where the names are not there, because what made them was lost."""
        (folder, name), (to, new) = op.names[0], op.names[-1]
        if folder not in self._folders or to not in self._folders:
            return
        here, there = self._folders[folder], self._folders[to]
        if op.kind == "create":
            here[name] = op.inode
            self._files[op.inode] = bytearray()
        elif op.kind == "mkdir":
            here[name] = op.inode
            self._folders[op.inode] = {}
        elif name in here and op.kind == "link":
            there.setdefault(new, here[name])
        elif name in here and op.kind == "rename":
            there[new] = here.pop(name)
        elif name in here and (op.kind == "unlink" or not self._folders.get(here[name])):
            del here[name]

    def tree(self) -> Tree:
        return dict(sorted(self._walk(ROOT, "")))

    def _walk(self, folder: int, above: str) -> Iterator[tuple[str, bytes | None]]:
        for name, inode in self._folders[folder].items():
            path = above + name
            if inode in self._files:
                yield path, bytes(self._files[inode])
            else:
                yield path, None
                yield from self._walk(inode, path + "/")


def _put(content: bytearray, op: Op, part: tuple[int, int] | None) -> None:
    end = op.offset + len(op.data)
    if op.kind == "truncate":
        del content[op.offset:]
        content.extend(bytes(op.offset - len(content)))
        return
    content.extend(bytes(max(0, end - len(content))))
    first, last = part if part is not None else (0, len(op.data))
    content[op.offset + first:op.offset + last] = op.data[first:last]


@dataclass
class State:
    """One disk after a power cut: before operation `at`, with `lost` and `torn` of what came before it."""

    ops: Sequence[Op]
    at: int
    lost: frozenset[int] = frozenset()
    torn: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def marks(self) -> list[str]:
        """What had been promised, in order."""
        return [op.data.decode() for op in self.ops[:self.at] if op.kind == "mark"]

    def tree(self) -> Tree:
        return Disk(self.ops[:self.at], self.lost, self.torn).tree()

    def write(self, folder: Path, tree: Tree | None = None) -> None:
        """Make this state in an empty folder; `tree` is what it holds, where that is known."""
        for name, content in (self.tree() if tree is None else tree).items():
            if content is None:
                os.mkdir(folder / name, 0o700)
            else:
                with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(content)

    def __str__(self) -> str:
        gone = ", ".join(f"{i}: {self.ops[i]}" for i in sorted(self.lost))
        part = ", ".join(f"{i}: {self.ops[i]} only {p[0]} to {p[1]}" for i, p in sorted(self.torn.items()))
        return (f"power cut before operation {self.at} of {len(self.ops)}; lost: {gone or 'nothing'}; torn: {part or 'nothing'}; "
                f"promised: {self.marks}")


def unsynced(ops: Sequence[Op], at: int) -> list[int]:
    """Operations before `at` that a power cut may undo: no sync of their file, or of all folders that they changed, came after them."""
    synced: set[int] = set()
    open_to_loss = []
    for i in range(at - 1, -1, -1):
        op = ops[i]
        if op.kind == "fsync":
            synced.add(op.inode)
        elif op.kind in DATA and op.inode not in synced:
            open_to_loss.append(i)
        elif op.names and op.kind not in DATA and not {folder for folder, _ in _changed(op)} <= synced:
            open_to_loss.append(i)
    return open_to_loss[::-1]


def _changed(op: Op) -> tuple[Name, ...]:
    return op.names[1:] if op.kind == "link" else op.names


def with_followers(ops: Sequence[Op], at: int, lost: set[int], can: set[int]) -> frozenset[int]:
    """`lost`, and what then cannot have happened: later operations on the same names, unless they are known to have."""
    names = set()
    out = set(lost)
    for i in range(min(lost, default=at), at):
        op = ops[i]
        if op.kind in DATA or not op.names:
            continue
        if i in out or (i in can and names & set(op.names)):
            out.add(i)
            names |= set(op.names)
    return frozenset(out)


def _cuts(op: Op, rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Ways to tear a write: the sectors up to one of them, or from it on; the first is always that only zeros came."""
    first = -op.offset % SECTOR
    inner = list(range(first or SECTOR, len(op.data), SECTOR))
    chosen = [inner[i] for i in sorted(rng.choice(len(inner), min(count, len(inner)), replace=False))] if inner else []
    return [(0, 0), *((0, c) for c in chosen), *((c, len(op.data)) for c in chosen)]


def _states_at(ops: Sequence[Op], at: int, rng: np.random.Generator, many: int) -> Iterator[State]:
    loose = unsynced(ops, at)
    can = set(loose)

    def without(lost: set[int], torn: dict[int, tuple[int, int]] | None = None) -> State:
        return State(ops, at, with_followers(ops, at, lost, can), torn or {})

    data = [i for i in loose if ops[i].kind in DATA]
    names = [i for i in loose if ops[i].kind not in DATA]
    yield without(set())
    yield without(can)
    yield without(set(data))
    yield without(set(names))
    yield without(set(), {i: (0, 0) for i in data if ops[i].kind == "write"})
    for i in loose[-many:]:
        yield without({i})
        yield without(can - {i})
    for i in [i for i in data if ops[i].kind == "write"][-many:]:
        for part in _cuts(ops[i], rng, 2):
            yield without(set(), {i: part})
            yield without(set(names), {i: part})
    for _ in range(many):
        lost = {i for i in loose if rng.random() < 0.5}
        torn = {}
        for i in data:
            if ops[i].kind == "write" and i not in lost and rng.random() < 0.3:
                cuts = _cuts(ops[i], rng, 2)
                torn[i] = cuts[int(rng.integers(len(cuts)))]
        yield without(lost, torn)


def states(ops: Sequence[Op], seed: int, count: int, many: int = 4) -> Iterator[tuple[State, Tree]]:
    """Up to `count` states of the disk with what they hold, no two alike, for power cuts spread over all operations.

    `many` is about how many operations are lost or kept alone, and how many parts are drawn at random, at each of them.
    """
    rng = np.random.default_rng(seed)
    found = [state for at in range(len(ops) + 1) for state in _states_at(ops, at, rng, many)]
    seen: set[bytes] = set()
    step = max(1.0, len(found) / count)
    for state in (found[int(i * step)] for i in range(int(len(found) / step))):
        tree = state.tree()
        mark = hashlib.blake2b("\n".join(state.marks).encode(), digest_size=16)
        for name, content in tree.items():
            mark.update(f"\n{name}\n{-1 if content is None else len(content)}\n".encode() + (content or b""))
        if mark.digest() not in seen:
            seen.add(mark.digest())
            yield state, tree
