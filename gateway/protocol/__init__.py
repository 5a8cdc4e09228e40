"""The Centrifuge client protocol, sans I/O: bytes become Commands here, Replies and Pushes become bytes."""
