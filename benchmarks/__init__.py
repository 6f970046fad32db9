"""Measurements of the whole and of its parts: ``make bench``. Nothing here is a test; tests measure no time."""
