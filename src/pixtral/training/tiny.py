"""Train the embedded model: ``python -m pixtral.training.tiny --out DIR`` (run it again to continue).

DIR/model then holds what ships as assets/tiny; DIR/state.pt is the run itself.
"""

from __future__ import annotations

import argparse
import math
import pathlib
from collections.abc import Sequence

import torch
from torch import nn
from torch.multiprocessing.spawn import spawn

from pixtral.configuration import LlavaConfig, MistralConfig, PixtralVisionConfig
from pixtral.models.llava import LlavaForConditionalGeneration
from pixtral.training.batches import Encoder
from pixtral.training.curriculum import Plan
from pixtral.training.export import export
from pixtral.training.loop import Trainer
from pixtral.training.questions import vocabulary
from pixtral.training.tiny_tokenizer import write_tokenizer

VOCAB_SIZE = 640


def tiny_config() -> LlavaConfig:
    """The architecture of the embedded model: every part of Pixtral, 2.9 million parameters."""
    vision = PixtralVisionConfig(
        hidden_size=192,
        intermediate_size=288,
        num_hidden_layers=4,
        num_attention_heads=6,
        hidden_act="silu",
        rope_theta=10000.0,
    )
    text = MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=16384,
        rms_norm_eps=1e-5,
        sliding_window=None,
        rope_theta=10000.0,
        pad_token_id=11,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=10,
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def initialise(model: nn.Module, seed: int, layers: int = 4) -> None:
    """Normal weights of deviation 1 / sqrt(inputs), smaller into the residual stream and the logits; norms 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = 0.5 if "embed_tokens" in name else 0.02 if "lm_head" in name else weight[0].numel() ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= math.sqrt(2 * layers)
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pixtral.training.tiny", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the run; it continues from there")
    parser.add_argument("--minutes", type=float, default=Plan.minutes, help="training time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of weights and images (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=2, help="of one thread each, averaging gradients (default: %(default)s)"
    )
    parser.add_argument("--report-minutes", type=float, default=Plan.report_minutes, help="time between reports")
    given = parser.parse_args(arguments)

    write_tokenizer(given.out / "tokenizer", vocabulary(), VOCAB_SIZE)
    plan = Plan(minutes=given.minutes, seed=given.seed, report_minutes=given.report_minutes)
    if given.processes == 1:
        work(0, 1, plan, given.out)
    else:
        (given.out / "rendezvous").unlink(missing_ok=True)
        spawn(work, (given.processes, plan, given.out), nprocs=given.processes)  # type: ignore[no-untyped-call]


def work(rank: int, processes: int, plan: Plan, folder: pathlib.Path) -> None:
    """One process of a run: for so small a model several processes of one thread are faster than one of several."""
    torch.set_num_threads(1)
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{(folder / 'rendezvous').resolve()}", rank=rank, world_size=processes
        )
    model = LlavaForConditionalGeneration(tiny_config())
    initialise(model, plan.seed)
    trainer = Trainer(model, Encoder(folder / "tokenizer"), plan, folder)
    resumed = trainer.resume()

    def log(line: str) -> None:
        if rank == 0:
            print(line, flush=True)

    log(f"{model.num_parameters():,} parameters; {'continued' if resumed else 'new run'}")
    trainer.run(log)
    if rank == 0:
        sizes = export(model, folder / "model", VOCAB_SIZE)
        log(f"wrote {folder / 'model'}: {sum(sizes.values()):,} bytes")
    if processes > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
