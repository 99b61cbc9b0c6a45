"""What tests have actors compute: a module of its own, which every actor imports, and which imports little."""

import logging
import os
import time

from nmt.errors import UserError


def odd(number: int) -> int:
    """What becomes of a part: the first are slow, 7 is refused."""
    time.sleep(0.3 / (1 + number))
    logging.getLogger("nmt.test").warning("part %d", number)
    if number == 7:
        raise UserError("seven is odd")
    return number**2


def die_at_three(deaths: str, number: int) -> int:
    """What becomes of a part; the fourth takes its actor with it, which leaves a byte in a file."""
    if number == 3:
        with open(deaths, "ab", 0) as file:
            file.write(b".")
        os._exit(1)
    return number
