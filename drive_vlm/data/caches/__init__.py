"""What is computed once and read many times: features of a frozen tower, log-probabilities of a frozen reference."""
