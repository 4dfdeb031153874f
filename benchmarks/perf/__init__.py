"""Cost of distilling, as ratios within one run: python -m benchmarks.perf"""
