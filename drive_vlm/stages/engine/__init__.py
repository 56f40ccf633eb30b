"""What every stage shares: flags, trainer, saving, faults, watchdog, progress."""
