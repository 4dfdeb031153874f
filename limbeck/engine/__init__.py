"""What every task shares: the distilling model, taps, methods' base, teacher cache, runners, hooks, result records."""
