"""The learner: TD functions, networks, weights, checkpoints and the update loop."""
