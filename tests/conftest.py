"""For all tests."""

import signal

# A shell that runs pytest in the background has it ignore SIGINT, and its children with it; some tests send them one.
signal.signal(signal.SIGINT, signal.default_int_handler)
