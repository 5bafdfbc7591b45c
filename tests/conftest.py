import gc
import signal

import torch

torch.set_num_threads(
    1
)  # the models of the tests are tiny; starting threads would cost more than they save
gc.set_threshold(
    100_000
)  # looking for garbage after every 700 new objects takes a twentieth of the time
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # run in the background by a shell: what Ctrl-C does is tested all the same
    signal.signal(signal.SIGINT, signal.default_int_handler)
