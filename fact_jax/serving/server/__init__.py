"""The HTTP server of a bank: many tasks on one ViT, each under its name.

Only this room and `cli/serve.py` import starlette, uvicorn, python-multipart and prometheus-client,
which the extra `serve` brings.
"""
