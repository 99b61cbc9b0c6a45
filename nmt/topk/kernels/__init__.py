"""The solvers as compiled loops over rows (numba), for `nmt.topk.fast`; importing a module here imports numba.

One row is handled at a time and every row by the same code, so that a row's result does not depend on the others to the
last bit. All functions are compiled at their first call for a dtype and kept on disk.
"""
