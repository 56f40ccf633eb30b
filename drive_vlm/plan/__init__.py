"""python -m drive_vlm plan: what a run would be, cost and need, before it runs. Loads no torch."""
