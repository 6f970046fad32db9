"""Playing a run's best policy, and its video."""
