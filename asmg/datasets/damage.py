"""Errors for damaged files, and how an error message quotes a value. Used by all readers of files."""

import gzip
import zlib
from pathlib import Path

from asmg.log_format import LogFormatError

__all__ = ["GZIP_ERRORS", "damaged_gzip", "damaged_parquet", "not_utf8", "quoted"]

GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
"""What Python's gzip raises for a file that is cut short or damaged."""

_QUOTED_CHARS = 60


def damaged_gzip(path: Path, error: Exception, line: int | None = None) -> LogFormatError:
    """The error for a damaged gzip file; `line` is the last line that was readable."""
    return LogFormatError(path, "a complete gzip file", f"one that is cut short or damaged ({error})", line=line)


def damaged_parquet(path: Path, error: Exception) -> LogFormatError:
    """The error for a damaged Parquet file."""
    return LogFormatError(path, "a complete Parquet file", f"one that is cut short or damaged ({error})")


def not_utf8(path: Path, error: UnicodeDecodeError, line: int | None = None) -> LogFormatError:
    """The error for text that is not UTF-8."""
    return LogFormatError(path, "text in UTF-8", f"byte {error.object[error.start]:#04x}", line=line)


def quoted(value: str) -> str:
    """A value in quotes, shortened to 60 characters."""
    return repr(value if len(value) <= _QUOTED_CHARS else value[:_QUOTED_CHARS] + "…")
