"""Several questions about one image on the engine itself: they join at different steps and share each pass.

python examples/engine.py [IMAGE [MODEL]]
"""

import sys

import pixtral
from pixtral.assets import demo_image_path
from pixtral.messages import normalize

image, model = (*sys.argv[1:], None, None)[:2]
assistant = pixtral.load(model)
engine = pixtral.Engine(
    assistant.model,
    pixtral.EngineConfig(kv_cache_bytes=None),
    tokenizer=assistant.processor.tokenizer,
    eos_token_ids=assistant.eos_token_ids,
)
questions = ["How many shapes are there?", "What colour is the star?", "Where is the circle?"]
texts = [""] * len(questions)
waiting = list(enumerate(questions))

while waiting or engine.has_unfinished:
    if waiting:  # one more joins at each step
        number, question = waiting.pop(0)
        content = [{"type": "image", "path": str(image or demo_image_path())}, {"type": "text", "text": question}]
        prompt = assistant.processor.encode(normalize([{"role": "user", "content": content}]))
        params = pixtral.SamplingParams(temperature=0, max_tokens=64)
        engine.add_request(pixtral.EngineRequest(str(number), prompt.ids, params, prompt.images))
    for output in engine.step():
        texts[int(output.request_id)] += output.text

for question, text in zip(questions, texts, strict=True):
    print(f"{question} {text}")
stats = engine.stats()
print(f"{stats.steps} steps, {stats.images_encoded} image encoded, {stats.cached_tokens} tokens found in the cache")
