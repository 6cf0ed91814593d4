"""Trainers and the run folder."""
