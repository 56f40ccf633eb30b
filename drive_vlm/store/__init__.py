"""Files that survive a kill: atomic writes, hashes, locks, shards, secrets, keyed JSON lines."""
