"""The end of a command whose user can fix the cause."""

import sys

from drive_vlm.launch.topology import read_topology


def stop_on_user_error(command: str, error: ValueError) -> None:
    """One line on stderr and exit code 2; under several ranks the main one speaks."""
    if read_topology().is_main:
        print(f"python -m drive_vlm {command}: error: {error}", file=sys.stderr)
    sys.exit(2)
