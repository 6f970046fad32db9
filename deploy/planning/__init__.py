"""What a run takes and does, and what of it cannot work, before anything is started."""
