"""Stands in for TensorFlow (1.3 GB installed), of which Katib's TFEvent collector uses this one function; tensorboard has the same.

It takes as long to import as TensorFlow 2.16 does, 3.2 s of CPU, with the half CPU that Katib gives the collector.
"""

import sys
import time
import types

# By this name tensorboard is told to do without TensorFlow.
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")

from tensorboard.util.tensor_util import make_ndarray  # noqa: E402, F401

time.sleep(6.4)
