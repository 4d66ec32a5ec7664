"""Demonstrations that ship with the package. They use the public names alone, as a program of a user's would."""
