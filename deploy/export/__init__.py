"""A policy in the formats of other programs, written whole and compared with the network before it is called done."""
