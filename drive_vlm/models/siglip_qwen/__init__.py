"""Drive-VLM: a SigLIP2 tower, temporal embeddings, a projector and a Qwen3 (or any other) causal language model."""
