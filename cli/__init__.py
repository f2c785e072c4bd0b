"""The commands.

The search for garbage is rarer than usual, and left out at the end, a tenth of a second of every command: modules and
compiling leave half a million objects behind, which full searches look at, and almost all live until the end.
"""

import atexit
import gc

from ggufsmith.cli.lean import UNUSED, import_gguf_in_parts, leave_out

gc.set_threshold(100_000)
atexit.register(gc.freeze)
import_gguf_in_parts()
leave_out(UNUSED)
