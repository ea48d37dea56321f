"""Bytes to pixels: reading, measuring and preparing images."""
