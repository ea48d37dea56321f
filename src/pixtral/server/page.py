"""The chat page: its static files and headers, and the routes that count the tokens of images before they are sent."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from pixtral.assets import demo_image_path
from pixtral.images.geometry import Grid
from pixtral.server.errors import ApiError
from pixtral.server.images import Detail, ImageUrl, size_within

if TYPE_CHECKING:
    from pixtral.server.state import ServerState

Measure: TypeAlias = Callable[[int, int, Detail], tuple[Grid, tuple[int, int]]]
Pages: TypeAlias = Callable[[str, Detail], Awaitable[Sequence[tuple[int, int]]]]

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}

# Scripts, styles and requests come from and go to this server alone; images may be those that the user chose, which
# the page shows as blobs. Trusted types without any policy make the browser refuse every way from text to HTML.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclasses.dataclass(frozen=True)
class PageFacts:
    """Facts that the page may know without a key.

    Attributes:
        auth_required: requests to /v1 need an API key.
        max_images: images in one request.
        max_image_pixels: width x height of an image.
        max_body_bytes: of one request.
        demo: the embedded model is served; the page offers an image that it can describe.
    """

    auth_required: bool
    max_images: int
    max_image_pixels: int
    max_body_bytes: int
    demo: bool = False


@dataclasses.dataclass(frozen=True)
class StaticFiles:
    """The page's files in memory, under a version that is a hash of all their contents.

    URLs contain the version, so browsers may cache a file forever, and files of two versions never mix.
    """

    version: str
    index: bytes
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, folder: pathlib.Path | None = None) -> StaticFiles:
        """The files of the package, or of another folder."""
        folder = folder or pathlib.Path(__file__).parent / "static"
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in _TYPES}
        files["demo.png"] = demo_image_path().read_bytes()
        template = files.pop("index.html").decode()
        version = hashlib.sha256(repr((template, files)).encode()).hexdigest()[:16]
        base = f"page/{version}"
        modules = [name for name in files if name.endswith(".js") and name != "theme.js"]
        preloads = "\n".join(f'<link rel="modulepreload" href="{base}/{name}">' for name in modules)
        return cls(version, template.replace("{files}", base).replace("{preloads}", preloads).encode(), files)

    @property
    def paths(self) -> frozenset[str]:
        """Every path of the page. None needs a key: they say nothing that is not in the package but limits."""
        return frozenset({"/", "/page/facts", "/page/grid", *(f"/page/{self.version}/{name}" for name in self.files)})


def facts_of(state: ServerState) -> PageFacts:
    """The facts about a server."""
    settings = state.settings
    return PageFacts(
        auth_required=settings.api_key is not None,
        max_images=settings.max_images,
        max_image_pixels=settings.max_image_pixels,
        max_body_bytes=settings.max_body_bytes,
        demo=settings.model is None,
    )


def measure_of(state: ServerState) -> Measure:
    """Measures images with the functions that prepare them for prompts."""
    limits, processor = state.image_loader.limits, state.processor
    side = processor.patch_size * processor.spatial_merge_size
    options: dict[str, Any] = {
        "size": {"longest_edge": limits.longest_edge},
        "patch_size": {"height": side, "width": side},
    }

    def measure(width: int, height: int, detail: Detail) -> tuple[Grid, tuple[int, int]]:
        size = size_within(width, height, limits.budget(detail), limits.tokens_of)
        grid = processor.image_processor.grid_of(*size, **options)
        return grid, grid.size(side)

    return measure


def pages_of(state: ServerState) -> Pages:
    """The sizes of a PDF's pages, drawn as for a prompt."""

    async def pages(url: str, detail: Detail) -> Sequence[tuple[int, int]]:
        state.enter()  # as much work as a prompt, and refused like one
        try:
            async with state.image_loader.loaded([ImageUrl(url, detail, "url")]) as images:
                return [page.size for page in images[0]]
        finally:
            state.leave()

    return pages


class Document(BaseModel):
    """The body of /page/pages."""

    model_config = ConfigDict(extra="forbid")
    url: str
    detail: Detail = "auto"


def page_routes(static: StaticFiles, facts: PageFacts, measure: Measure, pages: Pages) -> APIRouter:
    """The routes of the page.

    Args:
        static: the files.
        facts: limits of this server.
        measure: (width, height, detail) of an image to its grid and its (height, width) after resizing.
        pages: data: address of a PDF, and detail, to the (width, height) of its pages.
    """
    router = APIRouter(include_in_schema=False)
    tag = f'"{static.version}"'

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        headers = {**HEADERS, "Cache-Control": "no-cache", "ETag": tag}  # revalidated each time
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(static.index, headers=headers, media_type=_TYPES[".html"])

    @router.get("/page/facts")
    async def page_facts() -> Response:
        return _uncached(dataclasses.asdict(facts))

    @router.get("/page/grid")
    async def page_grid(
        width: Annotated[int, Query(ge=1, le=1_000_000)],
        height: Annotated[int, Query(ge=1, le=1_000_000)],
        detail: Detail = "auto",
    ) -> Response:
        """Grid and tokens of an image, as in a prompt."""
        return _uncached(_facts_of_image(*measure(width, height, detail)))

    @router.post("/page/pages")
    async def page_pages(document: Document) -> Response:
        """Grids and tokens of the pages of a PDF. It draws them, so it needs the key where there is one."""
        if not document.url.startswith("data:application/pdf;"):
            raise ApiError(400, "url is not a PDF; expected data:application/pdf;base64,...", param="url")
        sizes = await pages(document.url, document.detail)
        return _uncached([_facts_of_image(*measure(*size, document.detail)) for size in sizes])

    @router.api_route("/page/{version}/{name}", methods=["GET", "HEAD"])
    async def file(version: str, name: str) -> Response:
        content = static.files.get(name)
        if version != static.version or content is None:
            return Response("no such file\n", 404, {**HEADERS, "Cache-Control": "no-store"}, "text/plain")
        headers = {**HEADERS, "Cache-Control": "public, max-age=31536000, immutable"}
        return Response(content, headers=headers, media_type=_TYPES[pathlib.PurePath(name).suffix])

    return router


def _facts_of_image(grid: Grid, size: tuple[int, int]) -> dict[str, int]:
    height, width = size
    return {"rows": grid.rows, "cols": grid.cols, "tokens": grid.num_tokens, "width": width, "height": height}


def _uncached(content: Mapping[str, object] | Sequence[object]) -> Response:
    return JSONResponse(content, headers={**HEADERS, "Cache-Control": "no-store"})
