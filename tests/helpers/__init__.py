"""What several test files share: command lines, small networks, slow oracles.  No test file imports another."""
