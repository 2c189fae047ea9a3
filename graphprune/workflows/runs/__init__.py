"""The record and the options file of a run, and runs of a user's callable."""
