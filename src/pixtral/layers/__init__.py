"""What the networks are built of: linear layers, norms, rotary embeddings, attention, and what they return."""
