"""The command's own process: its signals, its output, its arithmetic and its machine."""
