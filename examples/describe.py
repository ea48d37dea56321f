"""Three lines to an answer.

python examples/describe.py [IMAGE [MODEL]]     without a MODEL, the small one inside the package
"""

import sys

import pixtral
from pixtral.assets import demo_image_path

image, model = (*sys.argv[1:], None, None)[:2]

assistant = pixtral.load(model)
answer = assistant.chat("What is in the picture?", images=image or demo_image_path())
print(answer.text)

print(f"{answer.usage.prompt_tokens} prompt tokens, {answer.usage.image_tokens} of them for the image; ", end="")
print(f"{answer.usage.completion_tokens} new ones in {answer.timings.total:.2f} s")
