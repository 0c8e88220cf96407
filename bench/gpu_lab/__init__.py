"""What `bench/gpu.py` is made of: parts that each run in a process of their own, and say what they found as they go."""
