"""What several services need."""

import os

# Threads of a matrix product that wait for the others spin by default. Where services share cores they take them from
# those that work: a product of two threads beside two busy ones took 22 times as long. Read when PyTorch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
