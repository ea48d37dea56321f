"""Structured outputs: schemas, patterns, choices and grammars as masks over tokens; tools and their calls."""
