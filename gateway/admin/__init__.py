"""The admin front: models, workers and the drain of a running gateway, on a listener of its own."""
