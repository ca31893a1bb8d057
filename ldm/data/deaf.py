"""To be imported by the fork server of loader workers, and by nothing else: it outlives a SIGTERM to all processes.

Workers whose server has died count as dead, and a training that is asked to stop needs them to end its step.
"""

import os
import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
# what it forks is as any process; a worker then decides for itself
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
