"""Bad input through nginx: connection or reply carries the right code, the node lives on, others notice nothing.

One node with the memory engine, tokens required, behind an nginx of its own. While a test is at it, a bystander on the
same node publishes and receives all the time.
"""
