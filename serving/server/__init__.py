"""A small local model server with TF Serving's API: for a laptop, tests and CI.

On a SavedModel it answers a scoring client as ``tensorflow_model_server`` does, and takes the same flags.
"""
