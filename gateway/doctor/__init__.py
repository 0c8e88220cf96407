"""`penstock doctor`: what a machine has for workers to run on, what is missing, and how to get it.

The facts come from a child of the worker's side, for a gateway imports no engine; what they mean is decided here.
"""
