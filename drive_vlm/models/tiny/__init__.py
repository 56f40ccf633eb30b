"""Random twins of the real classes, for tests and demonstrations."""
