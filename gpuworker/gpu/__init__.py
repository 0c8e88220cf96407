"""Models on an NVIDIA GPU: the card, the way of the bytes over it, and the engines that compute there."""
