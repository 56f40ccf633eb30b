"""What surrounds a run: topology, DeepSpeed configuration, manifest. Imports no torch."""
