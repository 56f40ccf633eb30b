"""MiniCPM-Llama3-V 2.5 and MiniCPM-V 2.6: a SigLIP tower that sees slices of any shape, a resampler, Llama 3 or Qwen2."""
