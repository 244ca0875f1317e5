"""The exact solvers: least squares and Gibbs sampling, one field of features at a time.

The score is linear in w and V of one feature given all others: score = rest + h · θ, h = [x (q − x V), x], θ = [V, w],
where q = Σ_j V_j x_j. So θ has a normal distribution (Rendle 2012), and features that never meet in a row are
independent of each other: they are a visit, and are solved together. Imports averaging.
"""
