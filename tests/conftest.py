"""Settings that hold before torch is imported."""

import os

# The suite runs in as many processes as there are cores: two threads in each would wait for each
# other in turns, and sums that are split over threads differ in their last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
