"""Numba functions that are compiled once and kept (`on_disk`), found by all that they are made of (`made_of`)."""

from dfm.compilation.on_disk import compiled as compiled
from dfm.compilation.on_disk import keep_on_disk as keep_on_disk
from dfm.compilation.on_disk import part as part
