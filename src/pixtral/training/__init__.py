"""Training of the embedded model on generated images."""
