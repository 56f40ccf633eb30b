"""From driving JSONL to batches: rows, chat rendering, pictures, order, packing. Imports no model."""
