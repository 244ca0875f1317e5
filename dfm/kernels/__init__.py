"""Training and scoring of rows: the contract, losses, optimizers, tables; on processors and GPUs.

Imports settings and data's records.
"""
