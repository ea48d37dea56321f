"""llama.cpp on Pixtral-12B's shapes: the phases that `pixtral bench` measures. Run by compare_llamacpp.py.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf numpy     (into an environment of its own)
    python benchmarks/llamacpp_peer.py --dir FOLDER

FOLDER gets two files of 8 GB in all the first time. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd
from llamacpp_files import VOCABULARY, write_files

IMAGE_CHUNK = 1
QUESTION = "01234567890123456789"  # twenty tokens: digits stand alone


class Images:
    """llama.cpp's side of images: the tower, and prompts with an image."""

    def __init__(self, tower: pathlib.Path, llm: llama_cpp.Llama, threads: int) -> None:
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads, params.print_timings = False, threads, False
        self.context = mtmd.mtmd_init_from_file(str(tower).encode(), llm._model.model, params)
        if self.context is None:
            raise SystemExit(f"llama.cpp cannot open {tower}")
        self.llm = llm

    def chunks(self, side: int, question: str = "") -> Any:
        """A random image and a question, cut into chunks."""
        pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
        bitmap = mtmd.mtmd_bitmap_init(side, side, pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        words = mtmd.mtmd_default_marker() + question.encode()
        text = mtmd.mtmd_input_text()
        text.text, text.add_special, text.parse_special = words, True, True
        if hasattr(text, "text_len"):
            text.text_len = len(words)
        made = mtmd.mtmd_input_chunks_init()
        if mtmd.mtmd_tokenize(self.context, made, ctypes.byref(text), (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap), 1):
            raise SystemExit("llama.cpp cannot cut the prompt into chunks")
        return made

    def encode(self, side: int) -> float:
        """Seconds of one image through tower and projector."""
        chunks = self.chunks(side)
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            if mtmd.mtmd_input_chunk_get_type(chunk) == IMAGE_CHUNK:
                return seconds(lambda chunk=chunk: mtmd.mtmd_encode_chunk(self.context, chunk))  # type: ignore[misc]
        raise SystemExit("llama.cpp sees no image in the prompt")

    def first_token(self, side: int) -> tuple[float, int]:
        """Seconds from an image and a question to the scores of the first token, and the prompt's tokens."""
        self.llm.reset()
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llm._ctx.ctx), True)
        start = time.perf_counter()
        chunks, end = self.chunks(side, QUESTION), llama_cpp.llama_pos(0)
        context = self.llm._ctx.ctx
        if mtmd.mtmd_helper_eval_chunks(self.context, context, chunks, 0, 0, 512, True, ctypes.byref(end)):
            raise SystemExit("llama.cpp cannot run the prompt")
        llama_cpp.llama_get_logits_ith(context, -1)[0]
        return time.perf_counter() - start, int(end.value)


def seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    if run():
        raise SystemExit("llama.cpp reports an error")
    return time.perf_counter() - start


def memory() -> dict[str, float]:
    """Resident memory of this process in GB: at most, and now its own and mapped from files."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    fields = {"peak_gb": "VmHWM", "own_gb": "RssAnon", "mapped_gb": "RssFile"}
    found = {name: re.search(rf"{field}:\s+(\d+) kB", status) for name, field in fields.items()}
    return {name: round(int(match[1]) * 1024 / 1e9, 3) for name, match in found.items() if match}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=1056)
    parser.add_argument("--context", type=int, default=1100)
    parser.add_argument("--new", type=int, default=16)
    args = parser.parse_args()
    decoder, tower = write_files(args.dir)
    start = time.perf_counter()
    llm = llama_cpp.Llama(
        str(decoder),
        n_ctx=4096,
        n_batch=2048,
        n_ubatch=512,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        verbose=False,
    )
    images = Images(tower, llm, args.threads)
    load = time.perf_counter() - start
    images.encode(128)
    image = images.encode(args.image)
    ids = np.random.default_rng(0).integers(1000, VOCABULARY, max(args.prompt, args.context) + args.new).tolist()
    llm.eval(ids[:32])
    llm.reset()
    prompt = seconds(lambda: llm.eval(ids[: args.prompt]))
    if args.context > args.prompt:
        llm.eval(ids[args.prompt : args.context])
    tokens = [seconds(lambda token=token: llm.eval([token])) for token in ids[-args.new :]]  # type: ignore[misc]
    first, length = images.first_token(args.image)
    result = {
        "name": "llama.cpp",
        "version": llama_cpp.__version__,
        "threads": args.threads,
        "load_s": round(load, 2),
        "image": {"side": args.image, "seconds": round(image, 3)},
        "prompt": {"tokens": args.prompt, "tokens_per_second": round(args.prompt / prompt, 3)},
        "new": {"context": args.context, "tokens_per_second": round(1 / float(np.median(tokens)), 3)},
        "first_token": {"side": args.image, "tokens": length, "seconds": round(first, 3)},
        "memory": memory(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
