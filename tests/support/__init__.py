"""Helpers of the tests: servers, stand-ins, fixtures."""
