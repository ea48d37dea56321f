"""Several turns about one image, and the same with messages in OpenAI's form.

python examples/conversation.py [IMAGE [MODEL]]
"""

import sys

import pixtral
from pixtral.assets import demo_image_path

image, model = (*sys.argv[1:], None, None)[:2]
image = str(image or demo_image_path())

assistant = pixtral.load(model)

conversation = assistant.conversation()
print(conversation.ask("How many shapes are there?", images=image))
print(conversation.ask("What colour is the star?"))

messages = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": "Where is the circle?"},
        ],
    }
]
answer = assistant.chat(messages)
print(answer)

answer = assistant.chat([*answer.messages, {"role": "user", "content": "What colour is the square?"}])
print(answer)
