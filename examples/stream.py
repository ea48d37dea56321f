"""The text as it is written, word by word.

python examples/stream.py [IMAGE [MODEL]]
"""

import sys

import pixtral
from pixtral.assets import demo_image_path

image, model = (*sys.argv[1:], None, None)[:2]

assistant = pixtral.load(model)
stream = assistant.chat("Describe the picture.", images=image or demo_image_path(), stream=True)
for piece in stream:
    print(piece, end="", flush=True)
print()

answer = stream.answer
print(f"first token after {answer.timings.first_token:.2f} s, then {answer.timings.tokens_per_second:.0f} tokens/s")
