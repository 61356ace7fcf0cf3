"""Start a daemon of Open MPI with SIGTERM, SIGUSR1 and SIGUSR2 blocked: what Slurm sends to its step is for the ranks, which unblock them.

Run as a script by ``mpirun`` on each node, before anything of the environment is known: ``python -IS daemon.py /path/to/prted ...``
"""

import os
import signal
import sys

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
    os.execv(sys.argv[1], sys.argv[1:])
