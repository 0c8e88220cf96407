"""Lets a gateway start with the pretence's variables in its environment, which are no settings of its own."""

import os


def install(config):
    """Tell gateway.config of them."""
    config._NO_SETTINGS |= {name for name in os.environ if name.startswith("PENSTOCK_PRETEND_")}
