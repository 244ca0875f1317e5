"""What trains and scores rows: the contract, losses, optimizers, tables; on processors and GPUs.

Imports settings and data's records.
"""
