"""Benchmarks: speed and memory of a model, beside the measured ceilings of the machine."""
