import torch

torch.set_num_threads(1)  # the models of the tests are tiny; starting threads would cost more than they save
