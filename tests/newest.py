"""A pytest plugin (`-p tests.newest`): lets the wire's tests run on a grpcio that hasn't been tested yet."""

import grpc

from serving import wire

wire.TESTED_GRPC = (*wire.TESTED_GRPC, grpc.__version__)
