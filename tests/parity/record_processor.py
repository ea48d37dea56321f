"""Record what transformers' PixtralProcessor returns, which needs torchvision and so an environment of its own.

Run with transformers 5.23, torch 2.14.1, torchvision 0.29.1 and mistral-common:
python tests/parity/record_processor.py. It writes golden/processor/cases.json, which test_processor.py reads.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from processor_cases import CALLS, CHATS, REFUSED, make_images  # noqa: E402
from tokens import small_hf  # noqa: E402


def listed(output: Any) -> dict[str, Any]:
    """ids, masks and sizes as lists; of the pixels their shape and their sum, which tells one image from another."""
    result = {
        key: value.tolist() if hasattr(value, "tolist") else value
        for key, value in output.items()
        if key != "pixel_values"
    }
    if "pixel_values" in output:
        pixels = output["pixel_values"]
        result["pixels"] = [list(pixels.shape), round(float(pixels.double().sum()), 3)]
    return result


def main() -> None:
    import transformers
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(small_hf())
    calls = [listed(processor(**make_images(call))) for call in CALLS]
    chats = [
        listed(processor.apply_chat_template(**make_images(chat), tokenize=True, return_dict=True)) for chat in CHATS
    ]
    refused = []
    for call in REFUSED:
        try:
            processor(**make_images(call))
            refused.append(None)
        except Exception as error:
            refused.append(type(error).__name__)
    sizes = [(1030, 1080), (16, 16), (4000, 3000), (1024, 1024), (1025, 700)]
    tokens = [[*size, processor._get_num_multimodal_tokens([size]).num_image_tokens[0]] for size in sizes]
    recorded = {
        "transformers": transformers.__version__,
        "calls": calls,
        "chats": chats,
        "refused": refused,
        "tokens": tokens,
    }
    target = HERE / "golden" / "processor" / "cases.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(recorded, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{target}: {target.stat().st_size} bytes; refused: {refused}")


if __name__ == "__main__":
    main()
