"""Operations behind one function each; the plain PyTorch version defines what is right."""
