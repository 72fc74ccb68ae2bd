"""Interaction logs: files, public logs, sampling of negatives, cutting into periods."""

from asmg.datasets.diginetica import read_diginetica, read_diginetica_clicks
from asmg.datasets.folders import FolderLog, open_folder, recognise_folder
from asmg.datasets.generic import LogOptions, read_log
from asmg.datasets.log import InteractionLog, cut
from asmg.datasets.movielens import read_ml_100k
from asmg.datasets.sampling import SampledLog, SamplingMode, sample_negatives
from asmg.log_format import ColumnMap, CutBy, LogFormatError

__all__ = [
    "ColumnMap",
    "CutBy",
    "FolderLog",
    "InteractionLog",
    "LogFormatError",
    "LogOptions",
    "SampledLog",
    "SamplingMode",
    "cut",
    "open_folder",
    "read_diginetica",
    "read_diginetica_clicks",
    "read_log",
    "read_ml_100k",
    "recognise_folder",
    "sample_negatives",
]
