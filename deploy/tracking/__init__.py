"""Records of a run in trackers, beside its own folder: a process for each, which no run waits for."""
