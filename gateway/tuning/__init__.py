"""`penstock tune`: measures one model on this machine and writes the batching that keeps a deadline. Serves nobody."""
