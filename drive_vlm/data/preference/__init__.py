"""Pairs of answers and their encoding."""
