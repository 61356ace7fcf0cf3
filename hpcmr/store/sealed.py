"""JSON in one form only, closed by its digest; and reading it as if somebody hostile had written it. NumPy is not needed.

A line per key, ASCII, and a last line with the digest of all that stands before it::

    {
    "format": "hpcmr-journal",
    ...
    "digest": "xxh3-128:9f..."
    }

Every byte is therefore checked before any of it is believed, and what is well digested is still held against limits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

DIGEST = "xxh3-128:"
DEPTH_MAX = 64
NUMBER_MAX = (1 << 63) - 1
COUNT_MAX = 1 << 60


class Wrong(Exception):
    """Why content is refused."""


def render(value: Mapping[str, Any], keys: Sequence[str]) -> bytes:
    """`value` as bytes: its `keys` in this order, and the digest."""
    body = "{\n" + "".join(f"{json.dumps(k)}: {compact(value[k])},\n" for k in keys)
    return f'{body}"digest": "{DIGEST}{xxhash.xxh3_128_hexdigest(body.encode())}"\n}}\n'.encode()


def compact(value: Any) -> str:
    """JSON on one line, keys in order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse(content: bytes, keys: Sequence[str], nbytes_max: int, depth_max: int = DEPTH_MAX) -> dict[str, Any]:
    """Inverse of `render`, without the digest. Raises `Wrong` with the reason.

    Notes
    -----
    The digest is compared first, over the bytes, so that damage costs no parsing. Time and memory are bounded by `nbytes_max`.
    """
    if len(content) > nbytes_max:
        raise Wrong(f"it has {len(content):,} bytes, more than {nbytes_max:,}")
    end = f'"digest": "{DIGEST}'.encode()
    at = len(content) - len(end) - 32 - 4
    if at < 0 or content[at:at + len(end)] != end or content[-4:] != b'"\n}\n':
        raise Wrong("it does not end with its digest: it was cut off, or changed after it was written")
    if content[at + len(end):-4] != xxhash.xxh3_128_hexdigest(content[:at]).encode():
        raise Wrong("its digest does not match: it was changed after it was written")
    value = load(content, depth_max)
    if list(value) != [*keys, "digest"]:
        raise Wrong("its keys are " + ", ".join(map(repr, value))[:300])
    if render(value, keys) != content:
        raise Wrong("it is not in the one form that such a file has")
    del value["digest"]
    return value


def load(content: bytes, depth_max: int = DEPTH_MAX) -> dict[str, Any]:
    """An object of plain JSON without doubled keys, huge numbers, or deep nesting. Raises `Wrong`."""
    try:
        value = json.loads(content.decode("ascii"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_small_int)
    except UnicodeDecodeError as error:
        raise Wrong(f"byte {error.start} is not ASCII") from None
    except RecursionError:
        raise Wrong(f"it is nested more than {depth_max} levels deep") from None
    except ValueError as error:
        raise Wrong(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise Wrong("it does not hold an object")
    _check_depth(value, depth_max)
    return value


def _check_depth(value: Any, depth_max: int) -> None:
    level = [value]
    for _ in range(depth_max + 1):
        level = [inner for v in level if isinstance(v, dict | list) for inner in (v.values() if isinstance(v, dict) else v)
                 if isinstance(inner, dict | list)]
        if not level:
            return
    raise Wrong(f"it is nested more than {depth_max} levels deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON number")


def _small_int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > NUMBER_MAX:
        raise ValueError(f"the number {text[:24]} does not fit in 64 bits")
    return int(text)


def number(value: Any, what: str, most: int = COUNT_MAX) -> int:
    """`value` if it is a count up to `most`. Raises `Wrong`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Wrong(f"{what} is {str(value)[:60]}, not a count")
    return value


def text(value: Any, what: str, most: int = 1 << 20) -> str:
    """`value` if it is a text of up to `most` characters. Raises `Wrong`."""
    if not isinstance(value, str) or len(value) > most:
        raise Wrong(f"{what} is {str(value)[:60]!r}, not a text of up to {most:,} characters")
    return value


def mapping(value: Any, what: str) -> dict[str, Any]:
    """`value` if it is an object. Raises `Wrong`."""
    if not isinstance(value, dict):
        raise Wrong(f"{what} is a {type(value).__name__}, not an object")
    return value


def items(value: Any, what: str) -> list[Any]:
    """`value` if it is a list. Raises `Wrong`."""
    if not isinstance(value, list):
        raise Wrong(f"{what} is a {type(value).__name__}, not a list")
    return value


def hexadecimal(value: Any, what: str, digits: int = 32) -> str:
    """`value` if it is so many lower-case hexadecimal digits. Raises `Wrong`."""
    if not isinstance(value, str) or len(value) != digits or set(value) - set("0123456789abcdef"):
        raise Wrong(f"{what} is {str(value)[:60]!r}, not {digits} hexadecimal digits")
    return value
