"""The answer of `pixtral serve` as it is written, and what it cost.

python examples/client_stream.py [QUESTION [BASE_URL]]
"""

import os
import sys

from openai import OpenAI

question, url = (*sys.argv[1:], None, None)[:2]

client = OpenAI(base_url=url or "http://127.0.0.1:8000/v1", api_key=os.environ.get("PIXTRAL_API_KEY", "none"))
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": question or "What can you see?"}],
    max_completion_tokens=100,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    else:
        print(f"\n{chunk.usage.completion_tokens} new tokens")
