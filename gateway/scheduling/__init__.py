"""The pure scheduling core: time is an argument, inputs are methods, outputs are effects.

No I/O, clock, thread, log or randomness.
"""
