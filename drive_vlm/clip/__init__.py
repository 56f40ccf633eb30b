"""The CLIP encoder and its scores, shared by rewards and evaluation."""
