"""One thread and no network, in every test. The answers to compare with are in oracles.py."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRILEMMA_CACHE"] = "none"  # features of one test are not read by another

import torch

torch.set_num_threads(1)
