"""The page's files, their headers, and what it asks about images, without a browser."""

from __future__ import annotations

import io
import re

import httpx
import pytest
from PIL import Image
from server.image_files import data_uri, pdf

from pixtral.images.geometry import image_grid
from pixtral.server.page import PageFacts, StaticFiles

SIZES = [(1, 1), (16, 16), (17, 16), (144, 112), (1024, 1024), (1030, 1080), (4000, 3000), (333, 2999), (5000, 40)]


@pytest.fixture(scope="module")
def static():
    return StaticFiles.read()


@pytest.fixture(scope="module")
def web(live):
    with httpx.Client(base_url=live.url) as client:
        yield client


def test_the_policy_lets_nothing_in_from_elsewhere(web):
    answer = web.get("/")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == "'self'" and policy["img-src"] == "'self' blob:"
    assert policy["require-trusted-types-for"] == "'script'" and policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "camera=()" in answer.headers["permissions-policy"]


def test_every_file_that_the_page_names_is_there(web, static):
    index = web.get("/").text
    names = re.findall(r'(?:href|src)="(page/[^"]+)"', index)
    assert len(names) > 20
    for name in names:
        answer = web.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["content-security-policy"] and answer.headers["x-content-type-options"] == "nosniff"
        kind = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[name.rpartition(".")[2]]
        assert answer.headers["content-type"].startswith(kind)
    for name, content in static.files.items():
        for wanted in re.findall(r'from "\./([^"]+)"', content.decode() if name.endswith(".js") else ""):
            assert wanted in static.files, f"{name} imports {wanted}"


def test_files_are_kept_under_a_name_that_changes_with_them(web, static, tmp_path):
    index = web.get("/")
    assert index.headers["cache-control"] == "no-cache"
    again = web.get("/", headers={"if-none-match": index.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    file = web.get(f"/page/{static.version}/app.js")
    assert file.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert web.get("/page/0123456789abcdef/app.js").status_code == 404
    (tmp_path / "index.html").write_text("{files} {preloads}")
    (tmp_path / "app.js").write_text("1")
    first = StaticFiles.read(tmp_path)
    (tmp_path / "app.js").write_text("2")
    assert StaticFiles.read(tmp_path).version != first.version


@pytest.mark.parametrize("name", ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "index.html", "", "nothing.js"])
def test_nothing_but_the_files(web, static, name):
    answer = web.get(f"/page/{static.version}/{name}")
    assert answer.status_code == 404
    assert "pathlib" not in answer.text


def test_head_has_the_headers_alone(web):
    answer = web.head("/")
    assert answer.status_code == 200 and answer.content == b"" and answer.headers["etag"]


def test_the_files_need_nothing_else_and_never_parse_html(static):
    for name, content in {**static.files, "index.html": static.index}.items():
        if name.endswith(".png"):
            continue
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""(?:src|href|url|import|from|fetch)\s*[=(]?\s*["'(]?(?:https?:)?//[a-z]""", text), name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text
        )
        assert not re.search(r"DOMParser|createContextualFragment|setHTMLUnsafe|parseHTMLUnsafe", text), name
    index = static.index.decode()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script>", index)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_an_image_costs_what_geometry_says(web, width, height):
    found = web.get("/page/grid", params={"width": width, "height": height, "detail": "high"}).json()
    grid = image_grid(width, height, patch_size=16, longest_edge=1024)
    assert (found["rows"], found["cols"], found["tokens"]) == (grid.rows, grid.cols, grid.num_tokens)
    assert (found["height"], found["width"]) == grid.size(16)


@pytest.mark.parametrize("detail", ["low", "high", "auto"])
@pytest.mark.parametrize(("width", "height"), [(144, 112), (640, 481), (90, 700)])
def test_an_image_costs_what_the_prompt_has(web, width, height, detail):
    told = web.get("/page/grid", params={"width": width, "height": height, "detail": detail}).json()
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    url = {"url": data_uri(buffer.getvalue(), "image/png"), "detail": detail}
    body = {
        "model": "pixtral-tiny",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}],
    }
    usage = web.post("/v1/chat/completions", json=body, timeout=30).json()["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == told["tokens"]
    if detail == "low":
        assert told["tokens"] <= 256


@pytest.mark.parametrize("detail", ["low", "high"])
def test_a_pdf_costs_what_the_prompt_has(web, detail):
    pytest.importorskip("pypdfium2")
    url = {"url": data_uri(pdf((200, 300), (300, 200)), "application/pdf"), "detail": detail}
    pages = web.post("/page/pages", json=url, timeout=60).json()
    assert len(pages) == 2 and all(page["tokens"] == page["rows"] * (page["cols"] + 1) for page in pages)
    body = {
        "model": "pixtral-tiny",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}],
    }
    answer = web.post("/v1/chat/completions", json=body, timeout=60).json()
    tokens = sum(page["tokens"] for page in pages)
    if "usage" in answer:
        assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == tokens
    else:  # more than the embedded model reads
        assert f"({tokens} of them for 2 make_image(s))" in answer["error"]["message"]


def test_what_is_no_pdf_is_refused(web):
    for url in ("https://example.com/a.pdf", data_uri(b"x", "image/png"), data_uri(b"x", "application/pdf")):
        answer = web.post("/page/pages", json={"url": url})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "url"
    assert web.post("/page/pages", json={"url": url, "more": 1}).status_code == 400


@pytest.mark.parametrize("query", ["width=0&height=1", "width=x&height=1", "height=1", "width=1&height=1&detail=most"])
def test_sizes_that_are_none_are_refused(web, query):
    answer = web.get(f"/page/grid?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("width", "detail")


def test_the_page_knows_the_limits(web, live):
    settings = live.state.settings
    facts = PageFacts(False, settings.max_images, settings.max_image_pixels, settings.max_body_bytes, demo=True)
    assert PageFacts(**web.get("/page/facts").json()) == facts


def test_the_page_is_open_where_the_api_needs_a_key(tiny):
    from server.conftest import serving

    with serving(tiny, api_key="secret") as live, httpx.Client(base_url=live.url) as web:
        assert web.get("/").status_code == 200
        assert web.get("/page/facts").json()["auth_required"] is True
        assert web.get("/page/grid?width=10&height=10").json()["tokens"] == 2
        for name in ("app.js", "base.css", "theme.js", "icon.svg", "demo.png"):
            assert web.get(f"/page/{StaticFiles.read().version}/{name}").status_code == 200
        assert web.get("/v1/models").status_code == 401
        assert web.post("/page/pages", json={"url": "data:application/pdf;base64,"}).status_code == 401
