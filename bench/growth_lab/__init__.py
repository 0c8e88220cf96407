"""Parts of bench/growth.py: what grows, the load on it, and how growth is judged."""
