"""The network against Transformers 5.23 on random small configurations: every number it returns, in float32."""

from __future__ import annotations

import pytest
import torch
from random_models import MIXED, VARIANTS, random_batch, random_pair

ALL_GRIDS = {
    "text": [[], []],
    "one": [[(3, 4)]],
    "several": [[(2, 3), (2, 3)], [(2, 3)]],
    "mixed": MIXED,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits(name):
    pair = random_pair(VARIANTS[name])
    for seed, grids in enumerate(ALL_GRIDS.values()):
        for side in ("left", "right"):
            batch = random_batch(pair.ours.config, grids, side=side, seed=seed)
            with torch.no_grad():
                ours = pair.ours(**batch.inputs())
                theirs = pair.theirs(**batch.inputs())
            real = batch.attention_mask.bool()
            print(name, side, (ours.logits - theirs.logits)[real].abs().max())
            torch.testing.assert_close(ours.logits[real], theirs.logits[real], rtol=0, atol=1e-4)
