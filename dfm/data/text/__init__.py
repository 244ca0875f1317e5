"""Text that other systems train on, as shards: libsvm, libffm, Vowpal Wabbit, CSV, and Criteo's log.

`convert` reads it block by block, in several processes, and writes Parquet; a format is a record of `formats`.
"""
