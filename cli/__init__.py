"""The commands.

Most of what a command makes lives until it ends, so the search for garbage is rarer than usual, and left out at the
end: a tenth of a second of every command.
"""

import atexit
import gc

gc.set_threshold(10_000)
atexit.register(gc.freeze)
