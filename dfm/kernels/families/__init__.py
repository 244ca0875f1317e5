"""Model families, one file each: their blocks, score and gradients. `registry` knows their names without loading them.

Imports what the kernels consist of.
"""
