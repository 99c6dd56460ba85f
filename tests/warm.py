"""Imported by the fork server of ``tests.processes``: what its children find ready."""

import torch

import xattn
from tests import tiny

torch.set_num_threads(1)
tiny.sd1()
assert xattn.batch
