"""Metrics and their statistics. They work on values already read; the tools own the files and the tables."""
