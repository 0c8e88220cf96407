"""Models at run time: what is wanted, what is served, and how the one becomes the other."""
