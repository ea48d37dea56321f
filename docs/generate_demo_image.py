"""Draw the image of the README: the packaged image with its patch grid, and the embedded model's own answers.

python docs/generate_demo_image.py [OUT]
"""

from __future__ import annotations

import pathlib
import sys

from PIL import Image, ImageDraw, ImageFont

import pixtral
from pixtral.assets import demo_image_path

SCALE, PATCH, MARGIN, TEXT_WIDTH = 4, 16, 28, 480
INK, GREY, ACCENT, PAPER = (32, 34, 40), (120, 126, 138), (214, 84, 26), (250, 250, 248)
QUESTIONS = (
    "What is in the picture?",
    "How many shapes are there?",
    "What colour is the star?",
    "Where is the circle?",
    "What shape is the blue thing?",
)


def with_grid(image: Image.Image) -> Image.Image:
    """The image enlarged, a line around every patch."""
    large = image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(large, "RGBA")
    step = PATCH * SCALE
    for x in range(0, large.width + 1, step):
        pen.line((x, 0, x, large.height), fill=(90, 94, 102, 110), width=2)
    for y in range(0, large.height + 1, step):
        pen.line((0, y, large.width, y), fill=(90, 94, 102, 110), width=2)
    return large


def main() -> None:
    """Ask, draw, write."""
    out = pathlib.Path(sys.argv[1] if sys.argv[1:] else pathlib.Path(__file__).parent / "images" / "demo.png")
    assistant = pixtral.load()
    answers = [assistant.chat(question, images=demo_image_path()) for question in QUESTIONS]
    info = answers[0].images[0]
    left = with_grid(Image.open(demo_image_path()).convert("RGB"))
    canvas = Image.new("RGB", (left.width + TEXT_WIDTH + 3 * MARGIN, left.height + 2 * MARGIN), PAPER)
    canvas.paste(left, (MARGIN, MARGIN))
    pen, x, y = ImageDraw.Draw(canvas), left.width + 2 * MARGIN, MARGIN
    small, large = ImageFont.load_default(18), ImageFont.load_default(25)
    size = f"{info.width} x {info.height} pixels = {info.rows} x {info.cols} patches = {info.tokens} tokens"
    pen.text((x, y), size, GREY, small)
    y += 48
    for question, answer in zip(QUESTIONS, answers, strict=True):
        pen.text((x, y), question, GREY, small)
        pen.text((x, y + 24), answer.text, INK if answer.finish_reason == "stop" else ACCENT, large)
        y += (left.height - 48) // len(QUESTIONS)
    out.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(out, optimize=True)
    print(f"wrote {out}: {canvas.width} x {canvas.height}")


if __name__ == "__main__":
    main()
