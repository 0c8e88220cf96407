"""Shared memory between the gateway and its children: bytes live in sealed memfds, ownership moves by message.

Nothing here knows HTTP, images, models or scheduling; both sides of every socket import it,
and nothing else of each other.
"""
