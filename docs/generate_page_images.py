"""Take the README's images of the page in the browser: light, dark, and on a phone; the embedded model answers.

python docs/generate_page_images.py [FOLDER]        needs playwright and Chromium
"""

from __future__ import annotations

import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from pixtral.assets import demo_image_path
from pixtral.training.scenes import draw, sample_scene

PHONE = {"width": 390, "height": 800}
WINDOWS = (("light", 1.5, {"width": 1100, "height": 920}), ("dark", 1.5, {"width": 1000, "height": 640}))
EARLIER = ("How many shapes are there?", "What shape is the blue thing?")
QUESTIONS = ("What is in the picture?", "How many shapes are there?")
SEEDS = (17, 10)  # of the other images


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The address of `pixtral serve` with the embedded model."""
    command = [sys.executable, "-m", "pixtral.cli", "serve", "--port", "0", "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def ask(page: Any, question: str, *images: pathlib.Path) -> None:
    """One question and its whole answer."""
    if images:
        page.set_input_files("#files", images)
        page.locator(".tile .caption").nth(len(images) - 1).wait_for()
    page.locator("#question").fill(question)
    page.locator("#send").click()
    page.locator(".message.assistant .meta").last.wait_for()
    page.locator("#send").wait_for()


def converse(page: Any, url: str, others: list[pathlib.Path]) -> None:
    """Some conversations, the last one open, with more images waiting."""
    page.goto(url)
    page.locator("body.ready").wait_for()
    for question in EARLIER:
        ask(page, question, others[0])
        page.keyboard.press("Alt+n")
    ask(page, QUESTIONS[0], demo_image_path())
    ask(page, QUESTIONS[1])
    page.set_input_files("#files", others)
    page.locator(".tile .caption").nth(len(others) - 1).wait_for()
    page.mouse.move(0, 0)


def save(page: Any, path: pathlib.Path) -> None:
    """Write what is seen, in the 256 colours that suit it best."""
    page.wait_for_timeout(400)  # transitions
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"wrote {path}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Serve, ask, write."""
    folder = pathlib.Path(sys.argv[1]) if sys.argv[1:] else pathlib.Path(__file__).parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as work, server() as url, sync_playwright() as playwright:
        others = [pathlib.Path(work) / f"shapes-{number}.png" for number in range(1, 1 + len(SEEDS))]
        for path, seed in zip(others, SEEDS, strict=True):
            Image.fromarray(draw(sample_scene(np.random.default_rng(seed), 144, 128, counts=(3,)))).save(path)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme, scale, size in WINDOWS:
            page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=scale)
            converse(page, url, others)
            if scheme == "dark":
                page.locator(".tile .look").first.click()
            save(page, folder / f"page-{scheme}.png")
        page = browser.new_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
        converse(page, url, others)
        save(page, folder / "page-phone.png")
        browser.close()


if __name__ == "__main__":
    main()
