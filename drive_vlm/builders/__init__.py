"""What makes rows: captions, pairs, splits, checks of finished files."""
