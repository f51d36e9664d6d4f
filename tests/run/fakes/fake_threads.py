"""A library that starts a thread when it is imported: a process that has imported it must not be forked."""

import threading
import time

threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
