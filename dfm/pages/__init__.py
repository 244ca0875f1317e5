"""Pages of HTML: tables and charts that any browser shows, without a script and without a network.

Imports storage.
"""
