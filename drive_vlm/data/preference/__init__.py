"""Preference pairs: what makes a pair usable (pairs.py), and steps 5 to 9 of the flow for its two sides (pair_encoding.py)."""
