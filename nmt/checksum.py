"""A checksum of what a safetensors file holds, kept in our own entry of its header: the format has none."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

KEY = "checksum"
_KIND = "crc32"


def content_checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of a header and of tensors: their names, kinds, shapes and bytes.

    It is there for copies that were cut off and bits that have changed, not against forgery.

    Args:
        header: plain JSON values; a checksum in it does not count.
        tensors: on the CPU.
    """
    # As it will be read: keys are strings by then.
    values = json.loads(json.dumps(header))
    values.pop(KEY, None)
    found = zlib.crc32(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), found)
        # As bytes: numpy knows no bfloat16.
        found = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{_KIND}:{found:08x}"


def check_content(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compares the checksum in a header with the content. Without one, or with one of another kind, anything passes.

    Raises:
        ValueError: they differ.
    """
    wanted = header.get(KEY)
    if str(wanted).startswith(f"{_KIND}:") and wanted != content_checksum(header, tensors):
        raise ValueError("its checksum is wrong: something in it has changed since it was written")
