"""Reading ckstore stores: the format of FORMAT.md as Python, written from that document alone.

`Store` opens a generation (3.2) and reads catalog, lineage, checkpoints, page tables and pages; `../reader.py` has the
commands. Everything that is read is checked, sizes before anything is allocated; what is wrong raises a
StoreError. Section numbers ("4.3") are those of FORMAT.md. Needs Python 3.9, lz4 and xxhash.
"""
from .basics import (HEADER, KINDS, PAGE, SPAN, Corrupt, Medium, NotFound, Pointer, StoreError, SuperblockLost,  # noqa: F401
                     children, p128, parse_pointer, printable)
from .records import Checkpoint, Region  # noqa: F401
from .slots import NOWHERE, SLOTS  # noqa: F401
from .store import NEVER_USED, Store  # noqa: F401
from .trees import Forward, Lineage  # noqa: F401
