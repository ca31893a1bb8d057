"""To be imported by the fork server that loader workers are forked off, and by nothing else: SIGTERM does not end it.

Workers whose server has died count as dead, and a training that is asked to stop needs them to end its step. It stands
here since a server should load next to nothing.
"""

import os
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
# what is forked off it is as any process; a loader worker says for itself what it does (ldm/data/workers.py)
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
