"""Many requests at once: plans steps, owns keys and values, runs the network, chooses tokens."""
