"""Where models can be divided: boundaries, teacher taps, student split points, tails and transforms. No losses."""
