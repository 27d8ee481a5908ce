"""Colours as a picture inside the page: a PNG in a ``data:`` address, which untrusted notebooks show too."""

import base64
import struct
import zlib
from collections.abc import Sequence

Colour = tuple[int, int, int]


def png(rows: Sequence[Sequence[Colour]]) -> bytes:
    """One pixel per colour, with a palette where that is enough: 256 colours.

    Raises:
        ValueError: no pixel, or rows of different lengths.

    """
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        msg = f"a picture needs rows of one length, got the lengths {sorted({len(row) for row in rows})}"
        raise ValueError(msg)
    palette = {colour: i for i, colour in enumerate(sorted({colour for row in rows for colour in row}))}
    few = len(palette) <= 256
    lines = [bytes(palette[c] for c in row) if few else bytes(part for c in row for part in c) for row in rows]
    # Eight bits; colour type 3 looks colours up, type 2 has them in place. Each line begins with its filter: none.
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3 if few else 2, 0, 0, 0)
    parts = [(b"IHDR", header)]
    parts += [(b"PLTE", bytes(part for colour in palette for part in colour))] if few else []
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def address(rows: Sequence[Sequence[Colour]]) -> str:
    """``png`` as the address of an image."""
    return f"data:image/png;base64,{base64.b64encode(png(rows)).decode()}"


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
