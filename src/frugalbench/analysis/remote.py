"""Run directories on object storage, read through fsspec: ``s3://bucket/run``, ``gs://…``, ``https://…``.

The two files of a run are copied into a temporary folder, of bounded size, and read like any others.
"""

from pathlib import Path
from typing import IO

from frugalbench.schema import FrugalbenchError
from frugalbench.untrusted import shown

_CHUNK = 2**20
_FILES = ("manifest.json", "records.jsonl")


def is_remote(path: Path | str) -> bool:
    """Whether ``path`` is an address with a scheme."""
    return isinstance(path, str) and "://" in path


def copy_run(address: str, folder: Path, most_bytes: int) -> None:
    """Copy the run at ``address`` into ``folder``; records that are not there yet are left out.

    Raises :class:`FrugalbenchError` without fsspec or the package of the scheme, where nothing can be read, and for a
    file of more than ``most_bytes``.
    """
    try:
        import fsspec
    except ImportError:
        raise FrugalbenchError(
            f"{shown(address)}: needs fsspec, which is not installed.\nInstall: pip install 'frugalbench[remote]'"
        ) from None
    for name in _FILES:
        try:
            with fsspec.open(f"{address.rstrip('/')}/{name}", "rb") as source, (folder / name).open("wb") as target:
                _copy(source, target, most_bytes, f"{address}/{name}")
        except FileNotFoundError:
            (folder / name).unlink(missing_ok=True)
        except FrugalbenchError:
            raise
        except Exception as problem:  # every scheme's package raises what it likes
            reason = str(problem).splitlines()[:1] or [type(problem).__name__]
            raise FrugalbenchError(f"{shown(address)}: cannot be read ({shown(reason[0], 300)})") from None


def _copy(source: IO[bytes], target: IO[bytes], most_bytes: int, what: str) -> None:
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > most_bytes:
            raise FrugalbenchError(f"{shown(what)}: more than the {most_bytes} bytes that are read of such a file.")
        target.write(chunk)
