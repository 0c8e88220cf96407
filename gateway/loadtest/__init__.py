"""Load on a server at times that are set beforehand, and what came of each request. A client; knows nothing of ours."""
