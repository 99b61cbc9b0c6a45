"""Arrays of an npz file, read without numpy's pickles."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from nmt.errors import UserError

# Of an array's header: that of Marian and of numpy is below 200 bytes.
_LONGEST_HEADER = 10_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The arrays of a file by their names, without some.

    Arrays are bytes that a header describes. Their sizes have to agree, and nothing may be compressed, so that no more
    memory is taken than the file is long.

    Raises:
        UserError: there is no such file, it is damaged, or an array holds Python objects, which could run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            return {name: _read(archive, info, path) for name, info in entries.items() if name not in without}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    except Exception as error:  # numpy reads headers by Python's parser, which raises what it likes
        raise UserError(f"{path} is no whole npz file ({' '.join(str(error).split())[:100]}); copy it again.") from None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Any:
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(f"{path} is refused: {info.filename} is compressed; write it again by numpy.savez.")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        shape, fortran, kind = _HEADERS[version](stream, max_header_size=_LONGEST_HEADER)
        if kind.hasobject:
            raise UserError(f"{path} is refused: {info.filename} holds Python objects, and only numbers are read.")
        content = stream.read()
    if len(content) != kind.itemsize * math.prod(shape):
        raise ValueError(f"{info.filename} has {len(content)} bytes for {shape} of {kind}")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
