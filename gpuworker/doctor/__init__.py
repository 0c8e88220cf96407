"""What this machine has for workers to run on. Every library is asked in a process of its own, which may die of it."""
