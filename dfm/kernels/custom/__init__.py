"""Losses and regularizers that users write as functions, and their derivatives."""
