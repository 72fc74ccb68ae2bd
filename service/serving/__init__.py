"""What a prediction needs and nothing more: immutable snapshots, and the swap between them. Knows no storage.

In the order of a prediction: `swap` holds the snapshot that is served; `snapshot` scores one request with it; `fields`
reads the request's fields; `forward` computes the scores. `id_hashes` and `id_index` find the rows of ids.

Behind them: `snapshot_file` and `tensor_file` define the file; `encode` and `prior` write it; `loading` and `sealed`
bring it into memory; `damage` checks it again later.
"""
