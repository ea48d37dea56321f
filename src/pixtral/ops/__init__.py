"""Operations on tensors: native kernels, each with a plain PyTorch version that defines the result."""
