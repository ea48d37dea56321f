"""What a second question about the same image costs: chat() with a random model over the embedded model's tokenizer.

python benchmarks/second_turn.py [--hidden 1024] [--layers 16] [--image 512] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from PIL import Image

import pixtral

QUESTIONS = ("What is in the picture?", "What colour is the star?", "How many shapes are there?")


def assistant_of(hidden: int, layers: int) -> pixtral.Assistant:
    """A model with random weights in bfloat16 and the embedded model's vocabulary."""
    small = pixtral.load(progress=False)
    values = small.model.config.to_dict()
    values["text_config"] |= {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "head_dim": 64,
    }
    values["vision_config"] |= {
        "hidden_size": hidden // 2,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers // 2,
        "num_attention_heads": hidden // 128,
        "head_dim": 64,
    }
    torch.manual_seed(0)
    model = pixtral.LlavaForConditionalGeneration(pixtral.LlavaConfig.from_dict(values)).to(torch.bfloat16).eval()
    return pixtral.Assistant(model, small.processor)


def main() -> None:
    """Print the seconds to the first token of each turn, medians over conversations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--image", type=int, default=512, help="pixels of its side")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    assistant = assistant_of(options.hidden, options.layers)
    assistant.chat("Hello", max_new_tokens=2)
    turns: list[list[tuple[float, int]]] = [[] for _ in QUESTIONS]
    for _ in range(options.rounds):
        noise = torch.randint(256, (options.image, options.image, 3), dtype=torch.uint8)
        conversation = assistant.conversation(max_new_tokens=8)
        for turn, question in enumerate(QUESTIONS):
            image = None if turn else Image.fromarray(noise.numpy())
            answer = conversation.ask(question, images=image)
            turns[turn].append((answer.timings.first_token, answer.usage.prompt_tokens))
    names = ("first", "second", "third")
    found = {
        name: {"first_token_s": statistics.median(s for s, _ in one), "prompt_tokens": one[-1][1]}
        for name, one in zip(names, turns, strict=True)
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
