"""From logits to tokens: what generation runs on."""
