"""Benchmarks: scripts that print figures. They measure; tests judge. Not in the wheel."""
