"""The commands of ``qherd``, a file each: its arguments, its help and what it does."""
