"""What plans needs no torch: it can be read, tested and used without it."""

from __future__ import annotations

import subprocess
import sys

TORCH_FREE = (
    "request",
    "sampling_params",
    "block_manager",
    "encoder_cache",
    "scheduler",
    "token_budget",
    "outputs",
    "config",
    "prompt_lookup",
)


def test_modules_that_import_no_torch():
    code = f"import sys; [__import__('pixtral.engine.' + n) for n in {TORCH_FREE!r}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
