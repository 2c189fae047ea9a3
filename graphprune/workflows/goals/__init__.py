"""Goals instead of shares: trials on held-out data choose the share that a run removes."""
