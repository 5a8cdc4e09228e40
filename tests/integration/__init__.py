"""Tests with real servers: nodes, relays, RabbitMQ, Redis, nginx, and the official SDKs as clients."""
