"""Runs shown in other people's trackers: a run's events are read, told as a record, and written by a sink."""
