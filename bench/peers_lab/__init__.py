"""The rig around bench/peers: installing, starting, loading and accounting of servers that do the same work."""
