"""What surrounds a run: topology, DeepSpeed configuration, run.json, status.json, requests to stop, the marker of a checkpoint.
Imports no torch."""
