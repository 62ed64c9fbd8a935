"""Measuring rankers side by side: quality with honest bounds, latency in interleaved rounds, and the gate.

The doors are `compressor.bench.run.run_bench`, `compressor.bench.gate.gate_report` and `compressor.bench.report`.
Nothing is imported here: a row's worker process starts through this package, and its memory is measured.
"""
