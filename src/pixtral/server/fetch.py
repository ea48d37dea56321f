"""The bytes behind a picture's address, for a server: data: always, http(s) only where allowed, nothing else ever."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from pixtral.errors import ImageError, ImageFetchError
from pixtral.images.limits import ImageLimits, shortened
from pixtral.images.source import read_bytes

MEDIA_TYPES = ("image/", "application/pdf")
_UNTYPED = ("", "text/plain", "application/octet-stream", "binary/octet-stream")
_DATA = re.compile(r"\s*data:\s*([^,;]*)", re.IGNORECASE)
_REMOTE = re.compile(r"\s*https?://", re.IGNORECASE)
_SCHEME = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):")
# What a client cannot do, and what it must not learn of the network around the server.
_NOT_FOR_CLIENTS = re.compile(r",? or raise ImageLimits\.\w+| \(ImageLimits\.\w+ is False\)")
_WHERE_IT_LEADS = re.compile(r"leads to \S+, which is not a public address")


class Fetcher:
    """Reads addresses, downloads in threads of their own: slow ones hold up nothing but other downloads."""

    def __init__(self, limits: ImageLimits, downloads: int = 8) -> None:
        self._limits = limits
        self._downloads = ThreadPoolExecutor(downloads, thread_name_prefix="pixtral-download")
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="pixtral-read")

    async def read(self, url: str) -> bytes:
        """The bytes behind an address.

        Raises:
            ImageTooLarge: more than `max_bytes`.
            ImageFetchError: refused, unreachable, too slow, redirected too often, or not declared as a picture.
            ImageError: not valid base64.
        """
        declared = declared_type(url)
        if declared is None and not _REMOTE.match(url):
            raise _refused(url)
        if declared is None and not self._limits.allow_remote:
            raise ImageFetchError(
                f"found {shortened(url)}; this server does not fetch pictures; send the picture as a data: URI, or "
                "start the server with --allow-remote-images"
            )
        if declared is not None and not (declared in _UNTYPED or declared.startswith(MEDIA_TYPES)):
            raise ImageFetchError(
                f"found a data: URI of type {shortened(declared)}; expected an image type or application/pdf"
            )
        threads = self._downloads if declared is None else self._threads
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, read_bytes, url.strip(), self._limits)
        except ImageError as error:
            raise for_clients(error) from error

    def close(self) -> None:
        """Take no more addresses; downloads that run end at their time limit."""
        self._downloads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=False, cancel_futures=True)


def declared_type(url: str) -> str | None:
    """The media type that a data: URI gives, perhaps ""; None for every other address."""
    found = _DATA.match(url[:200])
    return None if found is None else found[1].strip().lower()


def for_clients(error: ImageError) -> ImageError:
    """The same error without the words that are for whoever runs the server."""
    message = _NOT_FOR_CLIENTS.sub("", str(error))
    return type(error)(_WHERE_IT_LEADS.sub("leads to an address that is not public", message))


def _refused(url: str) -> ImageFetchError:
    scheme = _SCHEME.match(url[:40])
    kind = f"the scheme {scheme[1].lower()}:" if scheme else "no scheme"
    return ImageFetchError(
        f"found {shortened(url)}, an address with {kind}; expected a data: URI (data:image/png;base64,...) or "
        "http(s)://; files of the server are never opened"
    )
