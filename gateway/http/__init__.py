"""The HTTP front: headers, bodies, codecs and the one error table. No policy, no images, no processes."""
