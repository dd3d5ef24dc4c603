"""Helpers of the tests: data, bundles, servers, and faults of servers."""
