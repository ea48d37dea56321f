"""The model calls a function of this program, and answers with what it returned.

python examples/client_tools.py [BASE_URL]
"""

import json
import os
import sys

from openai import OpenAI

url = (*sys.argv[1:], None)[0]


def area(width: int, height: int) -> int:
    return width * height


parameters = {"width": {"type": "integer", "maximum": 999}, "height": {"type": "integer", "maximum": 999}}
schema = {"type": "object", "properties": parameters, "required": ["width", "height"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": "area", "description": "Width x height.", "parameters": schema}}]

client = OpenAI(base_url=url or "http://127.0.0.1:8000/v1", api_key=os.environ.get("PIXTRAL_API_KEY", "none"))
model = client.models.list().data[0].id
messages = [{"role": "user", "content": "How large is a square of 12 by 12?"}]
asked = client.chat.completions.create(
    model=model, messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=0
)
call = asked.choices[0].message.tool_calls[0]
result = area(**json.loads(call.function.arguments))
print(f"{call.function.name}({call.function.arguments}) = {result}")

messages += [asked.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": str(result)}]
answer = client.chat.completions.create(model=model, messages=messages, tools=tools, max_completion_tokens=50)
print(answer.choices[0].message.content)
