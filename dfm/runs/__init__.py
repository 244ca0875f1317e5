"""The traces of a run: its record, its outcome, its heartbeat; and its display.

Imports storage and settings.
"""
