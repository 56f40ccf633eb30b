"""Training on rewards."""
