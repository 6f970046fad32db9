"""The run's configuration: its parts, its layers, and the errors that a user is shown."""
