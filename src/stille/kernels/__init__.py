"""Pure operations on tensors. They import torch, triton or numba, and nothing of Stille above them."""
