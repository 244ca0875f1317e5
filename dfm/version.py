"""The version of dfm, for modules that may not import dfm itself."""

__version__ = "0.1.0"
