"""Qwen2.5-VL and Qwen3-VL (dense) through the native transformers classes.

A picture keeps its own resolution within a limit of pixels. Positions have three axes (M-RoPE); positions.py lays them out.
"""
