"""Scoring through TF Serving: a light client, and a local server with the same API."""
