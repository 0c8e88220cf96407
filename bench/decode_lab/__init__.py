"""What `bench/decode.py` is made of: images, the ways to decode them, time, error, pictures."""
