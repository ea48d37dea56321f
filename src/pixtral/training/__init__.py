"""Training: generated pictures, the embedded model, the loop."""
