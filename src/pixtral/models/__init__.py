"""The network, in plain PyTorch over packed tensors, with Hugging Face's parameter names."""
