"""MovieLens 100k (GroupLens): 100,000 ratings of films, September 1997 to April 1998 (RecBole's files)."""

from pathlib import Path

import numpy as np

from asmg.datasets.log import InteractionLog
from asmg.datasets.reading import read_ids, read_timestamps
from asmg.datasets.table import read_table

LIKED = 4
"""A rating from here on is a click."""

_INTERACTIONS = "ml-100k.inter.gz"
_FILMS = "ml-100k.item"


def read_ml_100k(folder: str | Path) -> InteractionLog:
    """Reads `ml-100k.inter.gz` and `ml-100k.item` of a folder, in the order of the file.

    Label 1: rated 4 or 5, label 0: 1 to 3. Categories: the genres. Raises LogFormatError for content of another form.
    """
    folder = Path(folder)
    columns = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
    ratings = read_table(folder / _INTERACTIONS, columns, delimiter="\t", quoted=False)
    stars = {str(value): value for value in range(1, 6)}
    rated = ratings.column("rating:float").convert(stars.__getitem__, "a rating from 1 to 5")

    films = read_table(folder / _FILMS, ["item_id:token", "class:token_seq"], delimiter="\t", quoted=False)
    genres = [tuple(text.split()) for text in films.column("class:token_seq").values]
    return InteractionLog(
        user_ids=read_ids(ratings.column("user_id:token")),
        item_ids=read_ids(ratings.column("item_id:token")),
        labels=(np.array(rated) >= LIKED).astype(np.uint8),
        timestamps_ms=read_timestamps(ratings.column("timestamp:float"), "s"),
        categories=dict(zip(read_ids(films.column("item_id:token")), genres, strict=True)),
    )


def is_ml_100k(folder: Path) -> bool:
    """Whether a folder holds the files of MovieLens 100k."""
    return (folder / _INTERACTIONS).is_file() and (folder / _FILMS).is_file()
