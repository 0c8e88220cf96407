"""A laboratory for scheduling policies: a virtual clock, workers that take exactly l(b), and a judge that counts.

Nothing here sleeps or reads a clock, but for `decision`, which measures what one decision costs.
"""
