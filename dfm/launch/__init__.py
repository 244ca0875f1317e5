"""The driver of a job as a task of Dask, as a process, or supervised in a pod.

Imports distributed and runs.
"""
