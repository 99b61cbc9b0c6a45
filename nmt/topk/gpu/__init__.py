"""The solvers as Triton kernels, for `nmt.topk.fast`; importing a module here imports triton.

A forward reads the scores once: `rows.blocks` leaves the maximum and the sum of exponentials of each block of a row.
What follows works on the best candidates of a row, one program a row, in float64, and on the blocks' sums. The rest of
a row is read again where its own weights or gradients are written, and where a row is so soft that the bound fails.
One row is handled by the same code whatever the others are, so that its result does not depend on them.

The functions `forward` and `backward` have the arguments of those of the same name in `nmt.topk.kernels`.
"""
