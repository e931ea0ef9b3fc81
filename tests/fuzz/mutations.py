"""How a file is damaged. Each mutation is a function of a random generator and the content."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

Rng = np.random.Generator

# What a field may hold instead. Lambdas, since a mutation may change its value further.
STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    2.9,
    -0.0,
    1e-310,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**31,
    2**32 - 1,
    2**63,
    10**400,
    "",
    "false",
    "0",
    "nan",
    "a" * 100_000,
    "\x1b]0;title\x07\x1b[2J",
    "\ud800",
    "日本語 🧮",
    "../../../etc/passwd",
    "\x00",
    [],
    {},
    [[]],
    [None],
    {"": {}},
)
NESTED = 3_000  # deeper than Python's parser follows


def damage_bytes(rng: Rng, content: bytes) -> bytes:
    """One to three of: bits flipped, a part cut out, doubled, zeroed, or the end cut off."""
    for _ in range(rng.integers(1, 4)):
        if not content:
            return bytes(rng.integers(0, 256, rng.integers(0, 64), np.uint8))
        start = int(rng.integers(len(content)))
        end = min(len(content), start + int(rng.integers(1, 65)))
        part = content[start:end]
        flipped = bytes(b ^ (1 << int(rng.integers(8))) for b in part[:3]) + part[3:]
        new = (
            content[:start],
            content[:start] + content[end:],
            content[:start] + part + content[start:],
            content[:start] + bytes(len(part)) + content[end:],
            content[:start] + b"\xff" * len(part) + content[end:],
            content[:start] + flipped + content[end:],
            content[:start] + flipped + content[end:],
        )
        content = new[int(rng.integers(len(new)))]
    return content


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every part of a JSON value, the whole first."""
    found = [path]
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(part, (*path, key))
    return found


def damage_value(rng: Rng, value: Any) -> Any:
    """A JSON value with one part replaced, removed, renamed or doubled."""
    # Parts near the top are few and matter most, so that every depth is equally likely.
    every = places(value)
    depths = sorted({len(path) for path in every})
    depth = depths[int(rng.integers(len(depths)))]
    chosen = [path for path in every if len(path) == depth]
    path = chosen[int(rng.integers(len(chosen)))]
    if not path:
        return STRANGE[int(rng.integers(len(STRANGE)))]
    whole = json.loads(json.dumps(value))
    parent = whole
    for key in path[:-1]:
        parent = parent[key]
    key, how = path[-1], int(rng.integers(6))
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
    elif how == 1:
        parent.append(parent[key])
    elif how == 2:  # the value of another place
        other = every[int(rng.integers(len(every)))]
        part = value
        for step in other:
            part = part[step]
        parent[key] = json.loads(json.dumps(part))
    elif how == 3 and isinstance(parent[key], int | float) and abs(parent[key]) < 2**1000:
        parent[key] = parent[key] * float(rng.choice([-1, 0.5, 2, 1e6])) + int(rng.integers(-1, 2))
    else:
        parent[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    return whole


def damage_json(rng: Rng, content: bytes) -> bytes:
    """A JSON file with one to three parts changed, or its bytes damaged."""
    how = int(rng.integers(8))
    if how == 0:
        return damage_bytes(rng, content)
    if how == 1:
        return _odd_text(rng, content)
    value = json.loads(content)
    for _ in range(rng.integers(1, 4)):
        value = damage_value(rng, value)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _odd_text(rng: Rng, content: bytes) -> bytes:
    """The same text in another encoding, nested too deeply, or with a key given twice."""
    text = content.decode()
    options = (
        b"\xef\xbb\xbf" + content,
        text.encode("utf-16"),
        b"[" * NESTED + b"]" * NESTED,
        text.replace("{", '{"a": ' * NESTED, 1).encode(),
        text.replace("{", '{"a": 1, "a": 2, ', 1).encode(),
        b"",
    )
    return options[int(rng.integers(len(options)))]


def damage_safetensors(rng: Rng, content: bytes) -> bytes:
    """A safetensors file whose header, or whose bytes, are damaged."""
    if rng.integers(3) == 0:
        return damage_bytes(rng, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = damage_json(rng, content[8 : 8 + length])
    said = len(header) if rng.integers(8) else int(rng.choice([0, 1, 2**31, 2**63 - 1]))
    return struct.pack("<Q", said) + header + content[8 + length :]


def damage_text(rng: Rng, content: bytes) -> bytes:
    """A text file with odd characters put in, or its bytes damaged."""
    if rng.integers(2):
        return damage_bytes(rng, content)
    odd = ("\x00", "\x1b[2J", "\u2028", "\ufeff", "\ud800", "\r", "\n" * 1000, "🧮" * 1000)
    put = odd[int(rng.integers(len(odd)))].encode("utf-8", "surrogatepass")
    at = int(rng.integers(len(content) + 1))
    return content[:at] + put + content[at:]


def damage_gguf(rng: Rng, content: bytes) -> bytes:
    """A GGUF file damaged in its first settings, in what describes its tensors, or anywhere."""
    until = int(rng.choice([256, 8192, len(content)]))
    return damage_bytes(rng, content[:until]) + content[until:]
