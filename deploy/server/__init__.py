"""The replay server: the embedded one, its users and their rights."""
