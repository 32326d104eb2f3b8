"""What several services share."""

import os

# By default OpenMP threads spin while they wait for one another. Where services share cores, that takes time from
# threads with work to do: a matrix product of two threads beside two busy ones took 22 times as long. PyTorch reads
# this when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
