"""What a prediction needs and nothing more: immutable snapshots, and the swap between them. Knows no storage.

In the order of a prediction: `swap` holds the snapshot that is served; `snapshot` scores one request with it; `fields`
reads the request's fields; `forward` computes the scores. `id_hashes` and `id_index` find the rows of ids.

Behind them: `snapshot_file` and `tensor_file` define the files; `encode` and `prior` write them; `loading` and `sealed`
bring them into memory, and `overlay` merges deltas; `damage` checks all of it again later.
"""
