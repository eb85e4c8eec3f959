"""The recurrent model: its contract, its reference cell and its PyTorch module.

`model.contract` is free of torch, so that a server can read it; everything else here needs torch.
"""
