"""What this project claims to be fast, measured: ``python -m benchmarks``; see README.md there."""
