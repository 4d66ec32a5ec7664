"""Listening to runs: what their traces say, measured. It never decides anything."""
