"""The program that draws PDF pages: a file on stdin, pixels on stdout, under hard limits.

PDFium is a large C++ program that parses untrusted files. Here a file that makes it crash, loop or use much memory
ends one short-lived process instead of the server. Started by `server/pdf.py` as a script, so it imports nothing of
this package.

    arguments: pages at most, longest side in pixels, seconds, bytes of memory
    stdin: the file
    stdout: one line of JSON, {"pages": n} or {"error": word, "found": n}; then for each page a line of JSON
        {"width": w, "height": h} and w * h * 3 bytes of RGB
"""

from __future__ import annotations

import json
import sys


def limit_resources(seconds: int, memory: int) -> None:
    """Limit CPU time, memory and written files; without the module `resource` only the parent's time limit holds."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def write_line(fields: dict[str, object]) -> None:
    """Write a line of JSON to the parent."""
    sys.stdout.buffer.write(json.dumps(fields).encode() + b"\n")


def main(max_pages: int, longest_edge: int, seconds: int, memory: int) -> None:
    """Draw all pages, the longest side of each of `longest_edge` pixels."""
    import pypdfium2  # type: ignore[import-untyped]

    data = sys.stdin.buffer.read()
    limit_resources(seconds, memory)
    try:
        document = pypdfium2.PdfDocument(data)
        count = len(document)
        if not 0 < count <= max_pages:
            write_line({"error": "pages", "found": count})
            return
        write_line({"pages": count})
        for index in range(count):
            page = document[index]
            width, height = page.get_size()
            if not (width > 0 and height > 0):
                raise pypdfium2.PdfiumError(f"page {index} has no size")
            bitmap = page.render(scale=longest_edge / max(width, height), rev_byteorder=True, prefer_bgrx=False)
            write_line({"width": bitmap.width, "height": bitmap.height})
            pixels = memoryview(bitmap.buffer).cast("B")
            for row in range(bitmap.height):
                line = pixels[row * bitmap.stride : row * bitmap.stride + bitmap.width * bitmap.n_channels]
                sys.stdout.buffer.write(rgb(bytes(line), bitmap.n_channels))
            bitmap.close()
            page.close()
    except pypdfium2.PdfiumError as error:
        write_line({"error": "password" if "password" in str(error).lower() else "damaged"})


def rgb(line: bytes, channels: int) -> bytes:
    """A row of pixels with 1, 3 or 4 channels as RGB."""
    if channels == 3:
        return line
    out = bytearray(len(line) // channels * 3)
    for channel in range(3):
        out[channel::3] = line[min(channel, channels - 1) :: channels]
    return bytes(out)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
