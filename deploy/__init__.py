"""How the gateway is run: the local cluster, and what the compose stack mounts."""
