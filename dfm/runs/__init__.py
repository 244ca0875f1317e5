"""The traces of a run: its record, its outcome, its heartbeat.

Imports storage and settings.
"""
