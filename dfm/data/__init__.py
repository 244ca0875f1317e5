"""From Parquet shards to partitions: schema, reading, hashing, encoding, vocabulary, preparation, synthetic logs.

Imports settings and storage; never kernels or models.
"""
