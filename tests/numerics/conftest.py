"""Numerical tests compute little at a time: a second thread would only spin."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
