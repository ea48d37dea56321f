"""The native kernels: C++ sources, and the door to the library that is built from them."""
