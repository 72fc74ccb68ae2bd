"""The forward pass of a snapshot: from the ids of one user and N candidates to N click probabilities.

`service.serving.snapshot.Snapshot.score` calls it for each prediction: once for all candidates, without any Python code
for a single one. There are two implementations of the same function, `interface.Forward`:

- `compiled`: machine code by numba, which serves. `mlp` scores with Embedding&MLP and `mf` with matrix factorization;
  `tables` finds rows in the base and the overlay, and `items` reads what items consist of.
- `reference`: plain torch, slower by an order of magnitude. Tests compare the compiled one with it, and it serves where
  the compiled one does not give the scores that were stored with a snapshot.

Machine code is cached on disk (in `NUMBA_CACHE_DIR` where that is set) and runs without the GIL.
"""
