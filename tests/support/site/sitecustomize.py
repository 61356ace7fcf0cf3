"""Put on PYTHONPATH by `tests.support.mpirun`: every Python that starts under it prints its stacks when asked.

The signal is a real-time one, so it never meets a signal that the program under test uses itself.
"""

import os

if os.environ.get("HPCMR_TEST_STACKS"):
    import faulthandler
    import signal

    try:
        # A copy of the descriptor, made before pytest points descriptor 2 at a file of its own.
        faulthandler.register(signal.SIGRTMIN + 6, file=os.dup(2), all_threads=True)
    except OSError:
        pass
