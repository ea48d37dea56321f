"""Several requests at once on the engine itself: they share its steps, and the image is encoded once.

python examples/engine.py [IMAGE [MODEL]]
"""

import sys

import pixtral
from pixtral import Engine, EngineConfig, EngineRequest, SamplingParams
from pixtral.assets import demo_image_path
from pixtral.messages import normalize

image, model = (*sys.argv[1:], None, None)[:2]
questions = ["How many shapes are there?", "What colour is the star?", "Where is the circle?"]

assistant = pixtral.load(model)
processor = assistant.processor
engine = Engine(assistant.model, EngineConfig(), tokenizer=processor.tokenizer, eos_token_ids=assistant.eos_token_ids)

image = pixtral.load_image(image or demo_image_path())
for question in questions:
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    prompt = processor.encode(normalize([{"role": "user", "content": content}]))
    params = SamplingParams(temperature=0, max_tokens=40)
    engine.add_request(EngineRequest(question, prompt.ids, params, prompt.images))

answers = dict.fromkeys(questions, "")
while engine.has_unfinished:
    for output in engine.step():
        answers[output.request_id] += output.text

for question, answer in answers.items():
    print(f"{question} {answer}")
print(f"{engine.stats().steps} steps, {engine.stats().images_encoded} image encoded")
