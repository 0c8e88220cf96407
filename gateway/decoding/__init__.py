"""The decoder process: untrusted bytes to pixels in a given buffer. The only room with image codecs."""
