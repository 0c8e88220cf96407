"""The demo: a real model with real weights, a real photo, and the whole server around them."""
