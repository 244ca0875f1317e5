"""The definition of a feature index, with the public xxhash package; imports nothing from dfm."""

from __future__ import annotations

import struct

import xxhash

MISSING = b"\x00missing"
RARE = b"\x00rare"
PRESENT = b"\x00value"


def token(column: str, value: bytes, hash_bits: int = 20) -> int:
    """XXH64 of the value, seeded by the XXH64 of the column, modulo 2**hash_bits."""
    return xxhash.xxh64_intdigest(value, xxhash.xxh64_intdigest(column.encode())) % 2**hash_bits


def category(column: str, text: str | bytes | None, hash_bits: int = 20) -> int:
    """The token of a text; None and empty text are missing."""
    value = text.encode() if isinstance(text, str) else text
    return token(column, value or MISSING, hash_bits)


def bucket(column: str, code: int, hash_bits: int = 20) -> int:
    """The token of a bucket of numbers; bucket 0 is a missing number."""
    return token(column, b"\x00bucket %d" % code if code else MISSING, hash_bits)


def cross(name: str, left: int, right: int, hash_bits: int = 20) -> int:
    """The token of two columns' 30-bit tokens, as sixteen bytes."""
    return token(name, struct.pack("<QQ", left, right), hash_bits)
