"""Helpers of the tests: data, bundles, servers and what breaks them."""
