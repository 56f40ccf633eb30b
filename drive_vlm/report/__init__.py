"""Pictures, tables and pages of scores."""
