"""Model repositories and contracts: files in, data out. Knows nothing of processes, sockets or HTTP."""
