"""Stand-ins for NVIDIA's libraries, for the CUDA wheel on a machine without a GPU: `make cuda-stand-in`."""
