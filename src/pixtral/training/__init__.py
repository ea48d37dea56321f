"""Training: generated images, the embedded model, the loop."""
