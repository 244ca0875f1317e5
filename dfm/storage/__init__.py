"""Files on any filesystem, what retries them, credentials, and arrays as safetensors.

Imports the ground only: errors, version, events, compilation.
"""
