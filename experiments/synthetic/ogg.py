"""Ogg files whose bytes depend on nothing but their contents (RFC 3533)."""

import struct


def with_serial(data: bytes, serial: int) -> bytes:
    """An Ogg file of one stream with another serial number, and so with other checksums.

    Raises:
        ValueError: the data is not a sequence of Ogg pages.
    """
    out = bytearray(data)
    at = 0
    while at < len(out):
        if out[at : at + 4] != b"OggS":
            raise ValueError(f"There is no Ogg page at byte {at} of {len(out)}.")
        segments = out[at + 26]
        end = at + 27 + segments + sum(out[at + 27 : at + 27 + segments])
        struct.pack_into("<I", out, at + 14, serial)
        struct.pack_into("<I", out, at + 22, 0)
        struct.pack_into("<I", out, at + 22, _checksum(out[at:end]))
        at = end
    return bytes(out)


def _checksum(page: bytes | bytearray) -> int:
    value = 0
    for byte in page:
        value = (value << 8) & 0xFFFFFFFF ^ _TABLE[value >> 24 ^ byte]
    return value


def _entry(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = (value << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if value & 0x80000000 else 0)
    return value


_TABLE = [_entry(byte) for byte in range(256)]
