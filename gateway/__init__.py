"""Penstock's gateway: every decision is made here, every slot is owned here; no image is ever decoded here."""

__version__ = "0.1.0"
