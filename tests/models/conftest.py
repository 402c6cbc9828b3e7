import torch

# networks this small gain nothing from threads, and lose much where the cores are shared
torch.set_num_threads(1)
