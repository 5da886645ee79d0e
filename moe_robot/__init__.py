"""A robot policy package: a learned gate sends every token to the two experts that suit it."""

__version__ = "0.1.0"
