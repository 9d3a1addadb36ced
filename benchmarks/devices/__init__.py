"""Devices: numbers against the CPU, many devices, and TPU programs without a TPU."""
