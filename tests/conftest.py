import gc
import os
import signal

import torch

# The models of the tests are tiny; starting threads would cost more than they save.
torch.set_num_threads(1)
# Looking for garbage after every 700 new objects takes a twentieth of the time.
gc.set_threshold(100_000)
# Run in the background by a shell: what Ctrl-C does is tested all the same.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# What the shell of a cluster has left: the tests that need these variables set them.
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
    os.environ.pop(name, None)
os.environ.pop("TORCHELASTIC_RUN_ID", None)
