"""A loaded model that answers rows."""
